package registry

import (
	"strings"
	"testing"
)

const staticManifest = `apiVersion: v1
kind: Pod
metadata: {name: web, labels: {a: b}}
spec:
  containers:
  - name: c
    image: hello:dev
`

func TestDecodeStaticPod(t *testing.T) {
	pod, err := DecodeStaticPod([]byte(staticManifest), "/m/web.yaml", "node-1")
	if err != nil {
		t.Fatal(err)
	}
	if pod.Name != "web-node-1" || pod.Namespace != "default" || pod.Spec.NodeName != "node-1" || len(pod.UID) != 32 {
		t.Errorf("made %s/%s on %s with UID %q", pod.Namespace, pod.Name, pod.Spec.NodeName, pod.UID)
	}
	if pod.Annotations[AnnotationConfigHash] != string(pod.UID) || pod.Annotations[AnnotationConfigSource] != "file" {
		t.Errorf("annotations are %v", pod.Annotations)
	}
	if c := pod.Spec.Containers[0]; pod.Spec.RestartPolicy != "Always" || c.TerminationMessagePath != "/dev/termination-log" || len(pod.Spec.Tolerations) != 1 {
		t.Errorf("defaults are missing: %+v", pod.Spec)
	}
	again, err := DecodeStaticPod([]byte(staticManifest), "/m/web.yaml", "node-1")
	if err != nil || again.UID != pod.UID {
		t.Errorf("the same manifest has UIDs %s and %s, %v", pod.UID, again.UID, err)
	}
	other, err := DecodeStaticPod([]byte(strings.Replace(staticManifest, "a: b", "a: c", 1)), "/m/web.yaml", "node-1")
	if err != nil || other.UID == pod.UID {
		t.Errorf("another manifest has the same UID, or %v", err)
	}
}

func TestDecodeStaticPodRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ manifest, want string }{
		"another kind":      {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}", "want a Pod"},
		"no name":           {"apiVersion: v1\nkind: Pod\nspec: {}", "name is needed"},
		"no container":      {"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}", "spec.containers: Required value"},
		"a Secret":          {staticManifest + "    envFrom: [{secretRef: {name: s}}]\n", "static pods may not reference secrets"},
		"a service account": {strings.Replace(staticManifest, "spec:", "spec:\n  serviceAccountName: x", 1), "static pods may not reference serviceaccounts"},
		"half a file":       {staticManifest[:30], ""},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := DecodeStaticPod([]byte(tc.manifest), "/m/x", "n"); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("DecodeStaticPod = %v, want %q", err, tc.want)
			}
		})
	}
}
