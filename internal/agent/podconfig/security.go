package podconfig

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/container"
)

// Security merges the pod's and the container's security contexts. imageUser is the image's
// USER; seccompDir is where Localhost profiles lie. An error is what the container waits for,
// with the reason CreateContainerConfigError.
func Security(pod *corev1.Pod, c *corev1.Container, imageUser, seccompDir string) (container.Security, error) {
	p, s := pod.Spec.SecurityContext, c.SecurityContext
	if p == nil {
		p = &corev1.PodSecurityContext{}
	}
	if s == nil {
		s = &corev1.SecurityContext{}
	}
	sec := container.Security{
		User:             cmp.Or(s.RunAsUser, p.RunAsUser),
		Group:            cmp.Or(s.RunAsGroup, p.RunAsGroup),
		Privileged:       isTrue(s.Privileged),
		ReadOnlyRootfs:   isTrue(s.ReadOnlyRootFilesystem),
		NoNewPrivileges:  s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation,
		MergeImageGroups: p.SupplementalGroupsPolicy == nil || *p.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyMerge,
		UnmaskedProc:     s.ProcMount != nil && *s.ProcMount == corev1.UnmaskedProcMount,
	}
	if err := verifyNonRoot(pod, c, cmp.Or(s.RunAsNonRoot, p.RunAsNonRoot), sec.User, imageUser); err != nil {
		return container.Security{}, err
	}
	if p.FSGroup != nil {
		sec.SupplementalGroups = append(sec.SupplementalGroups, *p.FSGroup)
	}
	sec.SupplementalGroups = append(sec.SupplementalGroups, p.SupplementalGroups...)
	if s.Capabilities != nil {
		sec.AddCapabilities = capabilities(s.Capabilities.Add)
		sec.DropCapabilities = capabilities(s.Capabilities.Drop)
	}
	sec.Seccomp = seccomp(cmp.Or(s.SeccompProfile, p.SeccompProfile), seccompDir)
	sec.AppArmor = appArmor(cmp.Or(s.AppArmorProfile, p.AppArmorProfile))
	return sec, nil
}

func capabilities(list []corev1.Capability) []string {
	var names []string
	for _, c := range list {
		names = append(names, strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_"))
	}
	return names
}

func seccomp(profile *corev1.SeccompProfile, dir string) string {
	if profile == nil {
		return "unconfined"
	}
	switch profile.Type {
	case corev1.SeccompProfileTypeRuntimeDefault:
		return "runtime"
	case corev1.SeccompProfileTypeLocalhost:
		if profile.LocalhostProfile != nil {
			return filepath.Join(dir, filepath.Join("/", *profile.LocalhostProfile))
		}
	}
	return "unconfined"
}

func appArmor(profile *corev1.AppArmorProfile) string {
	switch {
	case profile == nil:
		return ""
	case profile.Type == corev1.AppArmorProfileTypeUnconfined:
		return "unconfined"
	case profile.Type == corev1.AppArmorProfileTypeLocalhost && profile.LocalhostProfile != nil:
		return *profile.LocalhostProfile
	}
	return ""
}

func verifyNonRoot(pod *corev1.Pod, c *corev1.Container, nonRoot *bool, user *int64, imageUser string) error {
	if !isTrue(nonRoot) {
		return nil
	}
	where := fmt.Sprintf("(pod: %q, container: %s)", PodRef(pod), c.Name)
	if user != nil {
		if *user == 0 {
			return fmt.Errorf("container's runAsUser breaks non-root policy %s", where)
		}
		return nil
	}
	name, _, _ := strings.Cut(imageUser, ":")
	if name == "" {
		name = "0"
	}
	uid, err := strconv.ParseInt(name, 10, 64)
	if err != nil {
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", name, where)
	}
	if uid == 0 {
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	}
	return nil
}

// PodRef names a pod in messages: name_namespace(uid).
func PodRef(pod *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}
