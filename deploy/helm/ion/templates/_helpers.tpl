{{- /* The release's name, followed by the chart's name unless it contains that. It is short enough
     for the suffixes -csi, -gateway and a dispatcher's name. */ -}}
{{- define "ion.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 30 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 30 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- /* The labels that select the pods of a component.
     Takes (dict "root" $ "component" "gateway"). */ -}}
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

{{- /* The labels of pods. They do not depend on the chart's version, because otherwise every
     upgrade would replace all pods. Takes the map of ion.selector, and "own" labels. */ -}}
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

{{- /* The name of the Secret with the stores' URLs and credentials. */ -}}
{{- define "ion.secret" -}}
{{ .Values.stores.existingSecret | default (printf "%s-stores" (include "ion.fullname" .)) }}
{{- end -}}

{{- define "ion.tokensSecret" -}}
{{ .Values.gateway.existingSecret | default (printf "%s-tokens" (include "ion.fullname" .)) }}
{{- end -}}

{{- /* The value of a Secret's key in the cluster, or a new random one if there is none, so that a
     release keeps the keys that were made for it. Takes (list $ secret key). */ -}}
{{- define "ion.kept" -}}
{{- $root := index . 0 -}}
{{- $there := lookup "v1" "Secret" $root.Release.Namespace (index . 1) | default dict -}}
{{- with get ($there.data | default dict) (index . 2) -}}{{ b64dec . }}{{- else -}}{{ randAlphaNum 48 }}{{- end -}}
{{- end -}}

{{- /* A checksum of the Secret that pods read only when they start: if the Secret has changed, an
     upgrade replaces the pods. The keys that this chart makes never change. */ -}}
{{- define "ion.secretsChecksum" -}}
{{- if .Values.stores.existingSecret -}}
{{- $there := lookup "v1" "Secret" .Release.Namespace .Values.stores.existingSecret | default dict -}}
{{ list .Values.stores.existingSecret $there.data | toJson | sha256sum }}
{{- else -}}
{{ .Values.stores | toJson | sha256sum }}
{{- end -}}
{{- end -}}

{{- /* The annotations of pods. Takes (dict "root" $ "own" {...} "checksums" {...}). */ -}}
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

{{- /* Environment variables. Takes a list of maps; a later map wins over an earlier one. */ -}}
{{- define "ion.env" -}}
{{- $all := dict -}}
{{- range . }}{{- $all = mergeOverwrite $all (deepCopy .) -}}{{- end }}
{{- range $name, $value := $all }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end -}}

{{- /* The security context of every container except the one that mounts. */ -}}
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

{{- /* The settings that say where pods may run. Takes a map of values. */ -}}
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

{{- /* The rules that let daemons reach the stores, the API server and DNS. */ -}}
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

{{- /* A rule that lets peers reach a port. Takes (dict "port" name "from" peers). */ -}}
{{- define "ion.ingress" -}}
- ports: [{protocol: TCP, port: {{ .port }}}]
{{- with .from }}
  from: {{ toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{- define "ion.budgetVersion" -}}
{{- if .Capabilities.APIVersions.Has "policy/v1" -}}policy/v1{{- else -}}policy/v1beta1{{- end -}}
{{- end -}}

{{- /* A dispatcher's values over the dispatchers' defaults, as JSON. Takes (list $ {...}). */ -}}
{{- define "ion.dispatcher" -}}
{{- mergeOverwrite (deepCopy (index . 0).Values.dispatcherDefaults) (deepCopy (index . 1 | default dict)) | toJson -}}
{{- end -}}

{{- /* A pipeline file as JSON. A text that is not YAML is refused here, so that no pod fails to
     start because of it. The templates read only a few fields of the result, because Helm reads
     the key `on` as `true`. Takes (list name text). */ -}}
{{- define "ion.pipeline" -}}
{{- $read := fromYaml (index . 1 | default "") -}}
{{- with $read.Error -}}{{ fail (printf "dispatchers.%s.pipeline is no YAML: %s" (index $ 0) .) }}{{- end -}}
{{ toJson $read }}
{{- end -}}

{{- /* The modules whose queues determine the number of a dispatcher's replicas, as JSON:
     {"modules": [...]}. Takes (list name values). */ -}}
{{- define "ion.queues" -}}
{{- $name := index . 0 -}}{{- $of := index . 1 -}}
{{- $file := include "ion.pipeline" (list $name $of.pipeline) | fromJson -}}
{{- $modules := $of.autoscaling.modules | default $of.modules | default (keys ($file.modules | default dict) | sortAlpha) -}}
{{- if and (not $modules) $file.Chain -}}{{- $modules = list $file.name -}}{{- end -}}
{{- if not (compact $modules) -}}
{{- fail (printf "dispatchers.%s.autoscaling.modules: name the modules whose queues KEDA watches; the pipeline names none" $name) -}}
{{- end -}}
{{ dict "modules" $modules | toJson }}
{{- end -}}
