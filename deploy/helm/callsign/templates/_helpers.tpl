{{- define "callsign.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "callsign.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $both .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "callsign.selector" -}}
app.kubernetes.io/name: {{ include "callsign.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "callsign.labels" -}}
{{ include "callsign.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The name of cluster-wide objects: two releases in different namespaces do not share them. */}}
{{- define "callsign.clusterwide" -}}
{{- $name := include "callsign.fullname" . -}}
{{- ternary $name (printf "%s-%s" .Release.Namespace $name) (eq $name .Release.Namespace) -}}
{{- end }}

{{- define "callsign.serviceAccount" -}}
{{- default (ternary (include "callsign.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end }}

{{- define "callsign.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end -}}
{{- end }}

{{- define "callsign.pods" -}}
{{- default (ternary "node" "off" (eq .Values.mode "node")) .Values.pods -}}
{{- end }}

{{/* What the API server allows: kube-proxy falls back to other nodes by itself. */}}
{{- define "callsign.trafficDistribution" -}}
{{- if .Values.service.trafficDistribution -}}
{{ .Values.service.trafficDistribution }}
{{- else if eq .Values.mode "node" -}}
{{- if semverCompare ">=1.34.0-0" .Capabilities.KubeVersion.Version -}}PreferSameNode
{{- else if semverCompare ">=1.31.0-0" .Capabilities.KubeVersion.Version -}}PreferClose
{{- end -}}
{{- end -}}
{{- end }}

{{/* What a container may do: nothing. */}}
{{- define "callsign.containerSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}
