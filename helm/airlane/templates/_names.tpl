{{/* Names are fixed, not made of the release's: a cluster has one mesh, and sidecars look for it by these. */}}
{{- define "airlane.labels" -}}
{{ include "airlane.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: airlane
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "airlane.selector" -}}
app.kubernetes.io/name: airlane
app.kubernetes.io/component: operator
{{- end }}

{{- define "airlane.image" -}}
{{ .Values.image | default (printf "airlane:%s" .Chart.AppVersion) }}
{{- end }}

{{/* What every container here may do: nothing but run. Fits the `restricted` Pod Security Standard. */}}
{{- define "airlane.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "airlane.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* The fields of a pod that runs our image beside the operator: once, with the operator's account. */}}
{{- define "airlane.oncePod" -}}
serviceAccountName: airlane
restartPolicy: Never
enableServiceLinks: false
terminationGracePeriodSeconds: 5
securityContext: {{- include "airlane.podSecurity" . | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "airlane.admissionPolicies" -}}
{{- if and .Values.admissionPolicies.enabled (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) }}yes{{ end }}
{{- end }}

{{/* Without admission policies the right to restart workloads would be the right to read their Secrets. */}}
{{- define "airlane.restarts" -}}
{{- if and .Values.restarts.enabled (include "airlane.admissionPolicies" .) }}yes{{ end }}
{{- end }}
