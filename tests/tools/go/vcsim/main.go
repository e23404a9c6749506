// vcsim, govmomi's simulator of vCenter, with the options that the tests need. Its own module isn't served by the
// module proxy; the simulator is a package of govmomi.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"log"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func main() {
	model := simulator.VPX()
	listen := flag.String("l", "127.0.0.1:0", "the address to listen on")
	username := flag.String("username", "user", "the user that can log in")
	password := flag.String("password", "pass", "its password")
	certificate := flag.String("tls-cert", "", "speak TLS with this certificate")
	key := flag.String("tls-key", "", "its key")
	flag.IntVar(&model.Machine, "vm", model.Machine, "virtual machines in each pool")
	delay := flag.Int("task-delay", 0, "milliseconds that each task takes, while its object is locked")
	idle := flag.Duration("session-timeout", 0, "end sessions that were idle for so long")
	flag.Parse()

	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	simulator.TaskDelay.Delay = *delay // only now: creating the inventory takes tasks too
	if *idle != 0 {
		timeout := &types.OptionValue{Key: "config.vmacore.soap.sessionTimeout", Value: idle.String()}
		model.Map().OptionManager().UpdateOptions(&types.UpdateOptions{ChangedValue: []types.BaseOptionValue{timeout}})
	}
	if *certificate != "" {
		pair, err := tls.LoadX509KeyPair(*certificate, *key)
		if err != nil {
			log.Fatal(err)
		}
		model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	model.Service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*username, *password)}
	model.Service.RegisterEndpoints = true
	server := model.Service.NewServer()
	server.URL.User = nil
	fmt.Println(server.URL)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
	server.CloseClientConnections() // Close alone waits for requests that wait for changes
	model.Remove()
}
