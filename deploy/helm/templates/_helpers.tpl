{{- define "bridge.selector" -}}
app.kubernetes.io/name: vcenter-task-bridge
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bridge.labels" -}}
{{ include "bridge.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "bridge.image" -}}
{{- $tag := .Values.image.tag -}}
{{- if and (not $tag) (contains "/" .Values.image.repository) }}{{ $tag = .Chart.AppVersion }}{{ end -}}
{{ .Values.image.repository }}{{ with $tag }}:{{ . }}{{ end }}
{{- end }}
