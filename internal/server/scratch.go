package server

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"

	"gantry.dev/gantry/internal/api/auth"
	"gantry.dev/gantry/internal/backup"
	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/store"
	"gantry.dev/gantry/internal/volume/local"
)

// errScratchDone ends a control plane that has done what it was started for.
var errScratchDone = errors.New("done")

// openScratch runs a control plane over an unpacked backup, without network, controllers and scheduler, until work returns.
func openScratch(ctx context.Context, u *unpacked, logger *slog.Logger, work func(context.Context, *ControlPlane) error) error {
	keys := filepath.Join(u.dir, "pki")
	root, err := os.ReadFile(filepath.Join(keys, "ca.crt"))
	if err != nil {
		return fmt.Errorf("%w: the cluster's authority is not in it: %w", backup.ErrBroken, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(root) {
		return fmt.Errorf("%w: ca.crt is no certificate", backup.ErrBroken)
	}
	signing, err := readSigner(filepath.Join(keys, "sa.key"))
	if err != nil {
		return err
	}
	pods, err := netip.ParsePrefix(u.manifest.PodCIDR)
	if err != nil {
		return fmt.Errorf("%w: %w", backup.ErrBroken, err)
	}
	services, err := netip.ParsePrefix(u.manifest.ServiceCIDR)
	if err != nil {
		return fmt.Errorf("%w: %w", backup.ErrBroken, err)
	}
	cp, err := NewControlPlane(ctx, ControlPlaneOptions{
		EtcdDir: filepath.Join(u.dir, "etcd"), EncryptionKey: filepath.Join(keys, backup.Encryption), ImagesDir: filepath.Join(u.dir, "registry"),
		ClientCAs: func() *x509.CertPool { return pool }, SigningKey: signing, RootCA: root,
		PodCIDR: pods, ServiceCIDR: services, ClusterDomain: u.manifest.ClusterDomain,
		Version: serverVersion(u.manifest.Gantry), Logger: logger, NoControllers: true,
		Prepare: func(ctx context.Context, cp *ControlPlane) error {
			if err := work(ctx, cp); err != nil {
				return err
			}
			return errScratchDone
		},
	})
	if err != nil {
		return err
	}
	err = cp.Run(ctx)
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if errors.Is(err, errScratchDone) {
		return nil
	}
	return fmt.Errorf("starting the cluster in the backup: %w", err)
}

// readSigner reads a private key.
func readSigner(path string) (crypto.Signer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: the key of service accounts is not in it: %w", backup.ErrBroken, err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%w: %s holds no key", backup.ErrBroken, filepath.Base(path))
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	return nil, fmt.Errorf("%w: %s holds a key of an unknown kind", backup.ErrBroken, filepath.Base(path))
}

// move makes a restored cluster one of this machine. It writes to the store directly: webhooks and policies of the cluster, which need
// its network, have no say in it.
type move struct {
	node    string          // this machine's
	volumes string          // where its local volumes lie
	has     map[string]bool // folders of volumes whose content is back
	said    []string
}

func (m *move) apply(ctx context.Context, cp *ControlPlane) error {
	gone := map[string]bool{}
	err := each(ctx, cp, "nodes", func(e *store.Entry) error {
		gone[e.Object.GetName()] = true
		_, err := cp.store.Delete(ctx, "nodes", e.Key, e.Rev)
		return err
	})
	for _, kind := range []string{"csinodes.storage.k8s.io", "volumeattachments.storage.k8s.io", "leases.coordination.k8s.io"} {
		err = errors.Join(err, each(ctx, cp, kind, func(e *store.Entry) error {
			if kind == "leases.coordination.k8s.io" && e.Object.GetNamespace() != corev1.NamespaceNodeLease && e.Object.GetNamespace() != "kube-system" {
				return nil
			}
			_, err := cp.store.Delete(ctx, kind, e.Key, e.Rev)
			return err
		}))
	}
	if err != nil {
		return err
	}
	names := make([]string, 0, len(gone))
	for name := range gone {
		names = append(names, name)
	}
	slices.Sort(names)
	m.say("removed the nodes of the lost cluster: %s", strings.Join(names, ", "))
	for _, step := range []func(context.Context, *ControlPlane) error{m.pods, m.moveVolumes, m.claims} {
		if err := step(ctx, cp); err != nil {
			return err
		}
	}
	return nil
}

func (m *move) say(format string, args ...any) { m.said = append(m.said, fmt.Sprintf(format, args...)) }

// each calls do for every object of a kind; one that is not served has none.
func each(ctx context.Context, cp *ControlPlane, kind string, do func(*store.Entry) error) error {
	list, err := cp.store.List(ctx, kind, store.ListOptions{})
	if errors.Is(err, store.ErrNoKind) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", kind, err)
	}
	for _, e := range list.Entries {
		if err := errors.Join(ctx.Err(), do(e)); err != nil {
			return fmt.Errorf("changing %s %s: %w", kind, e.Key, err)
		}
	}
	return nil
}

// pods of lost nodes run nowhere. Who has a controller gets new ones; one without begins again, on a node that is there.
func (m *move) pods(ctx context.Context, cp *ControlPlane) error {
	replaced, again := 0, 0
	err := each(ctx, cp, "pods", func(e *store.Entry) error {
		pod, ok := e.Object.(*corev1.Pod)
		if !ok || pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			return nil
		}
		controlled := slices.ContainsFunc(pod.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Controller != nil && *o.Controller })
		if controlled || pod.DeletionTimestamp != nil || pod.Annotations[corev1.MirrorPodAnnotationKey] != "" {
			replaced++
			_, err := cp.store.Delete(ctx, "pods", e.Key, e.Rev)
			return err
		}
		again++
		pod = pod.DeepCopy()
		pod.Spec.NodeName = ""
		pod.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: pod.Status.QOSClass}
		_, err := cp.store.Update(ctx, "pods", e.Key, e.Rev, pod)
		return err
	})
	m.say("pods: %d will be made anew by their controllers, %d without a controller begin again", replaced, again)
	return err
}

// moveVolumes brings local volumes to this node. Those whose content is not in the backup are empty here.
func (m *move) moveVolumes(ctx context.Context, cp *ControlPlane) error {
	return each(ctx, cp, "persistentvolumes", func(e *store.Entry) error {
		pv, ok := e.Object.(*corev1.PersistentVolume)
		if !ok || local.Folder(pv) == "" {
			return nil
		}
		pv = pv.DeepCopy()
		folder := local.Folder(pv)
		pv.Annotations[local.NodeAnnotation] = m.node
		pv.Spec.Local.Path = filepath.Join(m.volumes, folder)
		pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{m.node}}},
		}}}}
		if !m.has[folder] {
			what := "no claim"
			if ref := pv.Spec.ClaimRef; ref != nil {
				what = ref.Namespace + "/" + ref.Name
			}
			m.say("the volume of %s is empty here", what)
		}
		_, err := cp.store.Update(ctx, "persistentvolumes", e.Key, e.Rev, pv)
		return err
	})
}

// selectedNode of a claim names the node that the scheduler chose for it (upstream's annotation).
const selectedNode = "volume.kubernetes.io/selected-node"

// claims that wait for a volume on a lost node wait for one on any node.
func (m *move) claims(ctx context.Context, cp *ControlPlane) error {
	return each(ctx, cp, "persistentvolumeclaims", func(e *store.Entry) error {
		claim, ok := e.Object.(*corev1.PersistentVolumeClaim)
		if !ok || claim.Annotations[selectedNode] == "" {
			return nil
		}
		claim = claim.DeepCopy()
		if claim.Spec.VolumeName == "" {
			delete(claim.Annotations, selectedNode)
		} else {
			claim.Annotations[selectedNode] = m.node
		}
		_, err := cp.store.Update(ctx, "persistentvolumeclaims", e.Key, e.Rev, claim)
		return err
	})
}

// verifyBackup starts a backup in a scratch folder and counts what is there.
func verifyBackup(ctx context.Context, run cli.VerifyRequest) (result cli.VerifyResult, err error) {
	dir, err := os.MkdirTemp(run.Scratch, "gantry-verify-")
	if err != nil {
		return result, fmt.Errorf("making a scratch folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	end := run.Steps.Begin("backup", "read")
	u, err := unpack(ctx, run.Source, run.Secret, dir)
	end(err)
	if err != nil {
		return result, err
	}
	result.Manifest, result.Objects = u.manifest, map[string]int{}
	end = run.Steps.Begin("cluster", "started in a scratch place")
	err = openScratch(ctx, u, run.Logger, func(ctx context.Context, cp *ControlPlane) error {
		if err := scratchAnswers(ctx, cp); err != nil {
			return err
		}
		for _, r := range cp.registry.Resources() {
			if r.Primary && slices.Contains(r.Verbs, "watch") {
				name := r.Resource.Resource
				if r.Resource.Group != "" {
					name += "." + r.Resource.Group
				}
				if n := cp.store.Count(name); n > 0 {
					result.Objects[name] = n
				}
			}
		}
		return nil
	})
	end(err)
	return result, err
}

// scratchAnswers asks the API of a scratch cluster as a client does.
func scratchAnswers(ctx context.Context, cp *ControlPlane) error {
	who := &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}}
	for _, path := range []string{"/api/v1/namespaces", "/api/v1/secrets", "/api/v1/pods", "/apis/apps/v1/deployments"} {
		r, err := http.NewRequestWithContext(auth.InProcess(ctx, who), http.MethodGet, path, http.NoBody)
		if err != nil {
			return fmt.Errorf("asking the scratch cluster: %w", err)
		}
		answer := &localAnswer{header: http.Header{}, code: http.StatusOK}
		cp.handler.ServeHTTP(answer, r)
		if answer.code != http.StatusOK {
			return fmt.Errorf("the scratch cluster answers %d to %s: %.200s", answer.code, path, answer.body.String())
		}
	}
	return nil
}
