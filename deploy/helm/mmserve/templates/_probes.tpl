{{- /* Whether requests are taken. The kubelet's gRPC probe speaks no TLS, and has no certificate of its own. */ -}}
{{- define "mmserve.probe" -}}
{{- if .Values.tls.clientCA -}}
httpGet: {port: metrics, path: /readyz, scheme: HTTPS}
{{- else if .Values.tls.secretName -}}
exec: {command: [/usr/local/bin/mmserve, health]}
{{- else -}}
grpc: {port: 8080}
{{- end -}}
{{- end -}}

{{- /* Whether the process answers; a server that drains does, and must not be killed for it. */ -}}
{{- define "mmserve.liveness" -}}
{{- if .Values.metrics.enabled -}}
httpGet: {port: metrics, path: /healthz, scheme: {{ ternary "HTTPS" "HTTP" (ne .Values.tls.secretName "") }}}
{{- else -}}
tcpSocket: {port: grpc}
{{- end -}}
{{- end -}}
