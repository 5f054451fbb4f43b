{{- /* The release's name, and the chart's if that is not in it. Room is left for -csi, -gateway and a dispatcher's name. */ -}}
{{- define "ion.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 30 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 30 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- /* Takes (dict "root" $ "component" "gateway") */ -}}
{{- define "ion.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .dispatcher }}
ion/dispatcher: {{ . }}
{{- end }}
{{- end -}}

{{- define "ion.labels" -}}
{{ include "ion.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: ion
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Of pods: nothing that differs from version to version, or every upgrade would replace them all. Takes the same, and "own" labels. */ -}}
{{- define "ion.podLabels" -}}
{{ include "ion.selector" . }}
app.kubernetes.io/part-of: ion
{{- range list .root.Values.commonLabels .own }}
{{- with . }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "ion.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "ion.jobsNamespace" -}}
{{ .Values.jobs.namespace | default .Release.Namespace }}
{{- end -}}

{{- /* The Secret that opens the stores. */ -}}
{{- define "ion.secret" -}}
{{ .Values.stores.existingSecret | default (printf "%s-stores" (include "ion.fullname" .)) }}
{{- end -}}

{{- define "ion.tokensSecret" -}}
{{ .Values.gateway.existingSecret | default (printf "%s-tokens" (include "ion.fullname" .)) }}
{{- end -}}

{{- /* Takes (list $ secret key): what stands there in the cluster, or something new. A key is never made twice for a release. */ -}}
{{- define "ion.kept" -}}
{{- $root := index . 0 -}}
{{- $there := lookup "v1" "Secret" $root.Release.Namespace (index . 1) | default dict -}}
{{- with get ($there.data | default dict) (index . 2) -}}{{ b64dec . }}{{- else -}}{{ randAlphaNum 48 }}{{- end -}}
{{- end -}}

{{- /* Of what a pod reads of Secrets only when it starts: another value is another pod. What is made by this chart never changes. */ -}}
{{- define "ion.secretsChecksum" -}}
{{- if .Values.stores.existingSecret -}}
{{- $there := lookup "v1" "Secret" .Release.Namespace .Values.stores.existingSecret | default dict -}}
{{ list .Values.stores.existingSecret $there.data | toJson | sha256sum }}
{{- else -}}
{{ .Values.stores | toJson | sha256sum }}
{{- end -}}
{{- end -}}

{{- /* Pods' annotations. Takes (dict "root" $ "own" {...} "checksums" {...}) */ -}}
{{- define "ion.annotations" -}}
checksum/stores: {{ include "ion.secretsChecksum" .root }}
{{- range $name, $sum := .checksums }}
checksum/{{ $name }}: {{ $sum }}
{{- end }}
{{- if .root.Values.metrics.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: "9464"
prometheus.io/path: /metrics
{{- end }}
{{- with .own }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Variables. A later map wins over an earlier one; takes a list of maps. */ -}}
{{- define "ion.env" -}}
{{- $all := dict -}}
{{- range . }}{{- $all = mergeOverwrite $all (deepCopy .) -}}{{- end }}
{{- range $name, $value := $all }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end -}}

{{- /* For every container but the one that mounts. */ -}}
{{- define "ion.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "ion.confinedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* Where pods may run. Takes a map of values. */ -}}
{{- define "ion.placement" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" }}
{{- with get $ $key }}
{{ $key }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "ion.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Rules for the stores, the API server and DNS. */ -}}
{{- define "ion.egress" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- range .Values.networkPolicies.egressPorts }}
    - {protocol: TCP, port: {{ . }}}
{{- end }}
{{- with .Values.networkPolicies.egress }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* A rule for a port. Takes (dict "port" name "from" peers) */ -}}
{{- define "ion.ingress" -}}
- ports: [{protocol: TCP, port: {{ .port }}}]
{{- with .from }}
  from: {{ toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{- define "ion.budgetVersion" -}}
{{- if .Capabilities.APIVersions.Has "policy/v1" -}}policy/v1{{- else -}}policy/v1beta1{{- end -}}
{{- end -}}

{{- /* What a dispatcher says, over what all of them say. Takes (list $ {...}); gives JSON. */ -}}
{{- define "ion.dispatcher" -}}
{{- mergeOverwrite (deepCopy (index . 0).Values.dispatcherDefaults) (deepCopy (index . 1 | default dict)) | toJson -}}
{{- end -}}

{{- /* A pipeline file as JSON. One that is no YAML is refused here, and not by a pod that does not start. Only the names of modules are
     read of it: this YAML takes the key `on` for `true`. */ -}}
{{- define "ion.pipeline" -}}
{{- $read := fromYaml (index . 1 | default "") -}}
{{- with $read.Error -}}{{ fail (printf "dispatchers.%s.pipeline is no YAML: %s" (index $ 0) .) }}{{- end -}}
{{ toJson $read }}
{{- end -}}

{{- /* The modules whose queues say how many replicas a dispatcher needs, as JSON: {"modules": [...]} */ -}}
{{- define "ion.queues" -}}
{{- $name := index . 0 -}}{{- $of := index . 1 -}}
{{- $file := include "ion.pipeline" (list $name $of.pipeline) | fromJson -}}
{{- $modules := $of.autoscaling.modules | default $of.modules | default (keys ($file.modules | default dict) | sortAlpha) -}}
{{- if and (not $modules) $file.Chain -}}{{- $modules = list $file.name -}}{{- end -}}
{{- if not (compact $modules) -}}
{{- fail (printf "dispatchers.%s.autoscaling.modules: name the modules whose queues are looked at; no pipeline says them" $name) -}}
{{- end -}}
{{ dict "modules" $modules | toJson }}
{{- end -}}
