{{- define "mmserve.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "mmserve.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mmserve.labels" -}}
{{ include "mmserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "mmserve.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "mmserve.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "mmserve.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What values together have to say, which a schema says badly. */ -}}
{{- define "mmserve.check" -}}
{{- $credentials := or .Values.auth.keysSecretName .Values.tls.clientCA (hasKey .Values.config "oidc-issuer") -}}
{{- if not (or .Values.allowInsecureListen (and .Values.tls.secretName $credentials)) -}}
{{- fail "listeners want TLS and credentials: set tls.secretName and auth.keysSecretName (or tls.clientCA, or config.oidc-issuer), or allowInsecureListen=true" -}}
{{- end -}}
{{- if and .Values.tls.clientCA (not .Values.tls.secretName) -}}
{{- fail "tls.clientCA: want tls.secretName too" -}}
{{- end -}}
{{- if and .Values.tls.clientCA (not .Values.metrics.enabled) -}}
{{- fail "tls.clientCA: want metrics.enabled, because the kubelet has no certificate and probes /readyz there" -}}
{{- end -}}
{{- if and .Values.model.hub .Values.model.claim -}}
{{- fail "model.hub and model.claim: want one of them" -}}
{{- end -}}
{{- if and .Values.model.path (not .Values.model.claim) -}}
{{- fail "model.path: want model.claim too" -}}
{{- end -}}
{{- if and .Values.model.hub (eq .Values.model.pull "job") (not .Values.cache.claim) -}}
{{- fail "model.pull=job: want cache.claim, the volume that the Job fills and pods read" -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.kind "hpa") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: want at most autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor (not .Values.metrics.enabled) -}}
{{- fail "metrics.podMonitor: want metrics.enabled" -}}
{{- end -}}
{{- end -}}

{{- define "mmserve.model" -}}
{{- $name := "" -}}
{{- if .Values.model.name }}{{- $name = printf "%s=" .Values.model.name -}}{{- end -}}
{{- if .Values.model.hub -}}
{{ $name }}hf://{{ .Values.model.hub }}
{{- else if .Values.model.claim -}}
{{ $name }}{{ clean (printf "/models/%s" .Values.model.path) }}
{{- end -}}
{{- end -}}

{{- define "mmserve.pod.security" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "mmserve.container.security" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- define "mmserve.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
- name: cache
{{- if .Values.cache.claim }}
  persistentVolumeClaim: {claimName: {{ .Values.cache.claim }}}
{{- else }}
  emptyDir: {sizeLimit: {{ .Values.cache.sizeLimit }}}
{{- end }}
{{- end -}}

{{- /* A container that has a hub's model in the cache, or finds it there. */ -}}
{{- define "mmserve.pull" -}}
- name: pull
  image: {{ include "mmserve.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args: [model, pull, {{ if .offline }}--hub-offline, {{ end }}{{ .root.Values.model.hub | quote }}]
  env:
    - {name: HF_HOME, value: /var/cache/mmserve/huggingface}
    {{- if and .root.Values.model.hubTokenSecret (not .offline) }}
    - name: HF_TOKEN
      valueFrom: {secretKeyRef: {name: {{ .root.Values.model.hubTokenSecret }}, key: token}}
    {{- end }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {memory: 1Gi}
  {{- include "mmserve.container.security" .root | nindent 2 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: cache, mountPath: /var/cache/mmserve}
{{- end -}}
