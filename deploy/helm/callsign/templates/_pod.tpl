{{/* The pod of the Deployment and of the DaemonSet. */}}
{{- define "callsign.pod" -}}
metadata:
  labels:
    {{- include "callsign.selector" . | nindent 4 }}
    # Network policies and observability select the cluster's DNS by this label.
    k8s-app: kube-dns
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- if .Values.saved.enabled }}
    # The volume is a cache: draining a node may delete it.
    cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes: saved
    {{- end }}
    kubectl.kubernetes.io/default-container: callsign
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "callsign.serviceAccount" . }}
  automountServiceAccountToken: true
  enableServiceLinks: false
  # The cluster's DNS must not depend on the cluster's DNS.
  dnsPolicy: Default
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    fsGroup: 65532
    seccompProfile: { type: RuntimeDefault }
    # Lets an unprivileged user bind port 53; a safe sysctl, limited to this pod's network namespace.
    sysctls: [{ name: net.ipv4.ip_unprivileged_port_start, value: "0" }]
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq .Values.mode "node" }}
  # A node without a pod would ask the others.
  tolerations: [{ operator: Exists }]
  {{- else if .Values.tolerations }}
  tolerations:
    {{- toYaml .Values.tolerations | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
  {{- else if eq .Values.mode "cluster" }}
  topologySpreadConstraints:
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      # Without this, the pods of the version before count too.
      matchLabelKeys: [pod-template-hash]
      labelSelector:
        matchLabels:
          {{- include "callsign.selector" $ | nindent 10 }}
    {{- end }}
  {{- end }}
  containers:
    - name: callsign
      image: {{ include "callsign.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - serve
        - --log-format={{ .Values.logFormat }}
        - --cluster-domain={{ .Values.clusterDomain }}
        {{- with include "callsign.pods" . }}
        {{- if ne . "off" }}
        - --pods={{ . }}
        {{- end }}
        {{- end }}
        {{- if eq .Values.mode "node" }}
        # Each self-check lists what is watched; many servers share one API.
        - --self-check=1h
        {{- end }}
        {{- range .Values.upstreams }}
        - --upstream={{ . }}
        {{- end }}
        {{- with .Values.service.clusterIP }}
        - --advertise={{ . }}
        {{- end }}
        - --lame-duck={{ .Values.lameDuck.least }}
        - --lame-duck-max={{ .Values.lameDuck.most }}
        {{- if .Values.saved.enabled }}
        - --saved=/saved/facts
        {{- end }}
        {{- if .Values.encrypted.existingSecret }}
        - --listen=[::]:53,tls://[::]:853,https://[::]:443,quic://[::]:853,h3://[::]:443
        - --tls-cert=/tls/tls.crt
        - --tls-key=/tls/tls.key
        {{- end }}
        {{- if .Values.adminToken.existingSecret }}
        - --admin-token-file=/admin/token
        {{- end }}
        {{- range .Values.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      {{- if or (eq (include "callsign.pods" .) "node") .Values.extraEnv }}
      env:
        {{- if eq (include "callsign.pods" .) "node" }}
        - name: NODE_NAME
          valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      ports:
        - { name: dns, containerPort: 53, protocol: UDP }
        - { name: dns-tcp, containerPort: 53, protocol: TCP }
        {{- if .Values.encrypted.existingSecret }}
        - { name: dot, containerPort: 853, protocol: TCP }
        - { name: doq, containerPort: 853, protocol: UDP }
        - { name: doh, containerPort: 443, protocol: TCP }
        - { name: doh3, containerPort: 443, protocol: UDP }
        {{- end }}
        - { name: metrics, containerPort: 9153, protocol: TCP }
        - { name: health, containerPort: 8080, protocol: TCP }
      livenessProbe:
        httpGet: { path: /health, port: health }
        periodSeconds: 10
        failureThreshold: 5
      # A pod that shuts down is noticed after three failures, well within the lame duck.
      readinessProbe:
        httpGet: { path: /ready, port: health }
        periodSeconds: 1
        timeoutSeconds: 1
        failureThreshold: 3
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- include "callsign.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- if .Values.saved.enabled }}
        - { name: saved, mountPath: /saved }
        {{- end }}
        {{- if .Values.encrypted.existingSecret }}
        # Not by subPath: the kubelet never updates such mounts.
        - { name: tls, mountPath: /tls, readOnly: true }
        {{- end }}
        {{- if .Values.adminToken.existingSecret }}
        - { name: admin, mountPath: /admin, readOnly: true }
        {{- end }}
  volumes:
    {{- if .Values.saved.enabled }}
    # A container that restarts starts from this snapshot while the API cannot be reached.
    - name: saved
      emptyDir: { sizeLimit: {{ .Values.saved.sizeLimit }} }
    {{- end }}
    {{- with .Values.encrypted.existingSecret }}
    - name: tls
      secret: { secretName: {{ . }} }
    {{- end }}
    {{- with .Values.adminToken.existingSecret }}
    - name: admin
      secret: { secretName: {{ . }}, items: [{ key: token, path: token }] }
    {{- end }}
{{- end }}
