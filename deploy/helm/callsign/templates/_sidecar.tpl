{{/*
Templates for other charts that have this one as a dependency with `mode: sidecar`:

  spec:
    {{- include "callsign.sidecar.dns" .Subcharts.callsign | nindent 4 }}
    securityContext:
      {{- include "callsign.sidecar.podSecurity" .Subcharts.callsign | nindent 6 }}
    initContainers:
      {{- include "callsign.sidecar.container" .Subcharts.callsign | nindent 6 }}
*/}}

{{/* The pod's resolv.conf names the sidecar. */}}
{{- define "callsign.sidecar.dns" -}}
dnsPolicy: None
dnsConfig: { nameservers: [127.0.0.1] }
{{- end }}

{{- define "callsign.sidecar.podSecurity" -}}
# Lets an unprivileged user bind port 53; a safe sysctl, limited to this pod's network namespace.
sysctls: [{ name: net.ipv4.ip_unprivileged_port_start, value: "0" }]
{{- end }}

{{/* An init container that always restarts is a sidecar: it is ready before the application starts, and ends after it. */}}
{{- define "callsign.sidecar.container" -}}
- name: callsign
  image: {{ include "callsign.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always
  args:
    - serve
    - --log-format={{ .Values.logFormat }}
    - --cluster-domain={{ .Values.clusterDomain }}
    - --listen=127.0.0.1:53
    - --admin=127.0.0.1:9153
    # Applications often use port 8080.
    - --health=[::]:9154
    # Its only clients have ended before it is told to.
    - --lame-duck=0
    {{- if eq .Values.sidecar.scope "namespace" }}
    - --watch-namespace=$(CALLSIGN_NAMESPACE)
    {{- end }}
    # Each self-check lists what is watched; many servers share one API.
    - --self-check=1h
    # The pod's resolv.conf names the sidecar itself.
    - --upstream={{ .Values.sidecar.upstream }}
    {{- range .Values.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  env:
    - name: CALLSIGN_NAMESPACE
      valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - { name: callsign-health, containerPort: 9154, protocol: TCP }
  startupProbe:
    httpGet: { path: /ready, port: callsign-health }
    periodSeconds: 1
    failureThreshold: 60
  livenessProbe:
    httpGet: { path: /health, port: callsign-health }
    periodSeconds: 10
    failureThreshold: 5
  resources:
    {{- toYaml .Values.sidecar.resources | nindent 4 }}
  securityContext:
    {{- include "callsign.containerSecurity" . | nindent 4 }}
{{- end }}

{{/* The right to read what sidecars answer from, for each ServiceAccount. */}}
{{- define "callsign.sidecar.rbac" -}}
{{- $name := printf "%s-sidecar" (include "callsign.fullname" .) -}}
{{- if eq .Values.sidecar.scope "cluster" }}
{{- $name = printf "%s-sidecar" (include "callsign.clusterwide" .) }}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels:
    {{- include "callsign.labels" . | nindent 4 }}
rules:
  - apiGroups: [""]
    resources: [services, namespaces]
    verbs: [list, watch]
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels:
    {{- include "callsign.labels" . | nindent 4 }}
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }} }
subjects:
  {{- range .Values.sidecar.serviceAccounts }}
  - { kind: ServiceAccount, name: {{ .name }}, namespace: {{ default $.Release.Namespace .namespace }} }
  {{- end }}
{{- else }}
{{- $namespaces := list }}
{{- range .Values.sidecar.serviceAccounts }}
{{- $namespaces = append $namespaces (default $.Release.Namespace .namespace) }}
{{- end }}
{{- range $namespace := uniq $namespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels:
    {{- include "callsign.labels" $ | nindent 4 }}
rules:
  - apiGroups: [""]
    resources: [services]
    verbs: [list, watch]
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels:
    {{- include "callsign.labels" $ | nindent 4 }}
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }} }
subjects:
  {{- range $.Values.sidecar.serviceAccounts }}
  {{- if eq (default $.Release.Namespace .namespace) $namespace }}
  - { kind: ServiceAccount, name: {{ .name }}, namespace: {{ $namespace }} }
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}
