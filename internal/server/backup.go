package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/backup"
	"gantry.dev/gantry/internal/images"
	"gantry.dev/gantry/internal/platform/addon/pack"
	"gantry.dev/gantry/internal/store"
	"gantry.dev/gantry/internal/volume/local"
)

// BackupOptions say where the parts of a backup lie that are not in the store.
type BackupOptions struct {
	Gantry     string // version
	Server     string // the node of this server
	KeysDir    string // DATA/pki
	VolumesDir string // of local volumes
	Kubeconfig string // by which programs in pods are reached; "" takes no dumps of addons
}

// keyFiles are the files of the folder of keys that a cluster cannot be without. All else there is made again from them.
func keyFiles() []string {
	return []string{
		"ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "etcd/ca.crt", "etcd/ca.key", "sa.key", "sa.pub",
	}
}

// gathering is one backup in the making.
type gathering struct {
	cp       *ControlPlane
	to       *backup.Writer
	volumes  bool
	manifest backup.Manifest
	dumped   map[string]bool // "project/claim" of volumes whose data is dumped
}

// backUp writes a backup. volumes says whether the content of local volumes goes in.
func (cp *ControlPlane) backUp(ctx context.Context, dst io.Writer, public string, volumes bool) (backup.Manifest, error) {
	cluster, err := cp.clusterUID(ctx)
	if err != nil {
		return backup.Manifest{}, err
	}
	opts := cp.opts.Backup
	head := backup.Head{Gantry: opts.Gantry, Cluster: cluster, Server: opts.Server, Taken: time.Now().UTC().Truncate(time.Second)}
	to, err := backup.NewWriter(dst, public, head)
	if err != nil {
		return backup.Manifest{}, err
	}
	g := &gathering{cp: cp, to: to, volumes: volumes, dumped: map[string]bool{}, manifest: backup.Manifest{
		Head: head, PodCIDR: cp.opts.PodCIDR.String(), ServiceCIDR: cp.opts.ServiceCIDR.String(), ClusterDomain: cp.opts.ClusterDomain,
		Keys: []string{}, Images: []string{}, Dumps: []backup.Dump{}, Volumes: []backup.Volume{},
	}}
	for _, part := range []func(context.Context) error{g.keys, g.store, g.images, g.git, g.dumps, g.localVolumes, g.foreignImages} {
		if err := errors.Join(ctx.Err(), part(ctx)); err != nil {
			return g.manifest, err
		}
	}
	g.miss("what containers wrote outside of volumes, logs, and the caches of builds")
	err = to.Close(g.manifest)
	g.manifest.Bytes = to.Bytes()
	return g.manifest, err
}

func (g *gathering) miss(format string, args ...any) {
	g.manifest.Missing = append(g.manifest.Missing, fmt.Sprintf(format, args...))
}

// clusterUID names the cluster for ever: it is in the store, so a restored cluster keeps it.
func (cp *ControlPlane) clusterUID(ctx context.Context) (string, error) {
	system := &corev1.Namespace{}
	if err := cp.admin.Get(ctx, ctrlclient.ObjectKey{Name: metav1.NamespaceSystem}, system); err != nil {
		return "", fmt.Errorf("finding the cluster's identity: %w", err)
	}
	return string(system.UID), nil
}

func (g *gathering) keys(context.Context) error {
	files := map[string]string{backup.Encryption: g.cp.opts.EncryptionKey}
	for _, name := range keyFiles() {
		files[backup.KeysDir+name] = filepath.Join(g.cp.opts.Backup.KeysDir, filepath.FromSlash(name))
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		text, err := os.ReadFile(files[name])
		if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(name, ".key") && name != backup.KeysDir+"sa.key" {
			g.miss("the key of %s, which this machine does not have", strings.TrimSuffix(strings.TrimPrefix(name, backup.KeysDir), ".key"))
			continue
		}
		if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(name, ".pub") {
			continue // it follows from the key
		}
		if err != nil {
			return fmt.Errorf("reading keys: %w", err)
		}
		if err := g.to.Text(name, text); err != nil {
			return err
		}
		g.manifest.Keys = append(g.manifest.Keys, name)
	}
	return nil
}

func (g *gathering) store(ctx context.Context) error {
	snapshot, err := g.cp.store.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("taking a snapshot of the store: %w", err)
	}
	reader, writer := io.Pipe()
	go func() {
		_, err := snapshot.WriteTo(writer)
		_ = writer.CloseWithError(err)
	}()
	err = g.to.File(backup.Snapshot, snapshot.SizeBytes(), reader)
	_ = reader.Close() // ends the writer, if it has not ended
	if err = errors.Join(err, snapshot.Close()); err != nil {
		return err
	}
	g.manifest.Revision, g.manifest.EtcdCluster = snapshot.Revision(), snapshot.ClusterID()
	return nil
}

// images adds what is used of the cluster's registry, each content once.
func (g *gathering) images(ctx context.Context) error {
	select {
	case <-g.cp.controlled:
	default:
		g.miss("images: the server has just begun")
		return nil
	}
	if g.cp.collector == nil {
		return nil
	}
	all, err := g.cp.collector.Used(ctx)
	if err != nil {
		return err
	}
	written := map[digest.Digest]bool{}
	for i := range all {
		repo, err := images.ParseRepository(all[i].Repository)
		if err != nil {
			return err
		}
		for _, d := range all[i].Blobs {
			if written[d] {
				continue
			}
			written[d] = true
			if err := g.blob(repo, d); err != nil {
				return err
			}
		}
		for _, m := range all[i].Manifests {
			g.manifest.Images = append(g.manifest.Images, images.Host+"/"+all[i].Repository+"@"+m.Digest.String())
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	return g.to.Text(backup.ImagesList, text)
}

func (g *gathering) blob(repo images.Repository, d digest.Digest) error {
	blob, err := g.cp.images.OpenBlob(repo, d)
	if err != nil {
		return err
	}
	defer func() { _ = blob.Close() }()
	return g.to.File(backup.BlobsDir+d.Algorithm().String()+"-"+d.Encoded(), blob.Size, blob)
}

// git adds what was pushed.
func (g *gathering) git(ctx context.Context) error {
	if _, err := os.Stat(g.cp.opts.GitDir); g.cp.opts.GitDir == "" || err != nil {
		return nil //nolint:nilerr // nothing was ever pushed
	}
	_, err := g.to.Stream(backup.GitDir, func(w io.Writer) error { return backup.PackTree(ctx, g.cp.opts.GitDir, w) })
	return g.tolerate(err, "what was pushed by git")
}

// tolerate notes what could not be had; other errors end the backup.
func (g *gathering) tolerate(err error, what string) error {
	if produce, ok := errors.AsType[*backup.ProduceError](err); ok {
		g.miss("%s: %v", what, produce.Err)
		return nil
	}
	return err
}

// dumps adds the data of addons.
func (g *gathering) dumps(ctx context.Context) error {
	select {
	case <-g.cp.platform:
	default:
		return nil
	}
	c, err := g.cp.platformAdmin()
	if err != nil {
		return err
	}
	var apps v1alpha1.AppList
	if err := c.List(ctx, &apps); err != nil {
		return fmt.Errorf("listing applications: %w", err)
	}
	for i := range apps.Items {
		app := &apps.Items[i]
		names := make([]string, 0, len(app.Spec.Addons))
		for name := range app.Spec.Addons {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			if err := g.dump(ctx, app, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *gathering) dump(ctx context.Context, app *v1alpha1.App, name string) error {
	what := fmt.Sprintf("the data of the addon %s of %s/%s", name, app.Namespace, app.Name)
	kind := app.Spec.Addons[name].Type
	known, err := pack.Find(kind)
	if err != nil {
		g.miss("%s: %v", what, err)
		return nil
	}
	claim := v1alpha1.ObjectName(app.Name, name)
	pod := &corev1.Pod{}
	err = g.cp.admin.Get(ctx, ctrlclient.ObjectKey{Namespace: app.Namespace, Name: claim + "-0"}, pod)
	if ctrlclient.IgnoreNotFound(err) != nil {
		return fmt.Errorf("looking for an addon: %w", err)
	}
	if err != nil || !isPodReady(pod) {
		g.miss("%s: it does not run now", what)
		return nil
	}
	if g.cp.opts.Backup.Kubeconfig == "" {
		g.miss("%s: this server does not reach programs in pods", what)
		return nil
	}
	file := backup.DumpsDir + app.Namespace + "/" + claim + "." + known.Extension
	n, err := g.to.Stream(file, func(w io.Writer) error {
		return runInPod(ctx, g.cp.opts.Backup.Kubeconfig, pod, []string{"sh", "-c", known.Dump}, nil, w)
	})
	if err := g.tolerate(err, what); err != nil {
		return err
	}
	if err == nil {
		g.dumped[app.Namespace+"/"+claim] = true
		g.manifest.Dumps = append(g.manifest.Dumps, backup.Dump{Project: app.Namespace, App: app.Name, Addon: name, Type: kind, File: file, Bytes: n})
	}
	return nil
}

func isPodReady(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// localVolumes adds the content of the volumes of this machine, if asked to, and says what is left out.
func (g *gathering) localVolumes(ctx context.Context) error {
	var all corev1.PersistentVolumeList
	if err := g.cp.admin.List(ctx, &all); err != nil {
		return fmt.Errorf("listing volumes: %w", err)
	}
	for i := range all.Items {
		pv := &all.Items[i]
		claim := "no claim"
		if ref := pv.Spec.ClaimRef; ref != nil {
			claim = ref.Namespace + "/" + ref.Name
		}
		folder := local.Folder(pv)
		what := fmt.Sprintf("the content of the volume %s (%s)", pv.Name, claim)
		switch {
		case g.dumped[claim]: // a copy of a database's files that it writes meanwhile is worth nothing beside its dump
			continue
		case !g.volumes:
			g.miss("%s: volumes were not asked for", what)
			continue
		case folder == "":
			g.miss("%s: it is no local volume", what)
			continue
		case pv.Annotations[local.NodeAnnotation] != g.cp.opts.Backup.Server:
			g.miss("%s: it is on the node %s", what, pv.Annotations[local.NodeAnnotation])
			continue
		}
		file := backup.VolumesDir + folder + ".tar"
		n, err := g.to.Stream(file, func(w io.Writer) error {
			return backup.PackTree(ctx, filepath.Join(g.cp.opts.Backup.VolumesDir, folder), w)
		})
		if err := g.tolerate(err, what); err != nil {
			return err
		}
		if err == nil {
			g.manifest.Volumes = append(g.manifest.Volumes, backup.Volume{Name: pv.Name, Folder: folder, Claim: claim, File: file, Bytes: n})
		}
	}
	return nil
}

// maxNamed is how many images a sentence names.
const maxNamed = 20

// foreignImages says which images pods use that the cluster's registry does not have.
func (g *gathering) foreignImages(ctx context.Context) error {
	var pods corev1.PodList
	if err := g.cp.admin.List(ctx, &pods); err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	var names []string
	for i := range pods.Items {
		for _, c := range pods.Items[i].Spec.Containers {
			if !strings.HasPrefix(c.Image, images.Host+"/") {
				names = append(names, c.Image)
			}
		}
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		return nil
	}
	more := ""
	if len(names) > maxNamed {
		more = fmt.Sprintf(" and %d more", len(names)-maxNamed)
		names = names[:maxNamed]
	}
	g.miss("images of other registries, or loaded by \"gantry image load\": %s%s", strings.Join(names, ", "), more)
	return nil
}

// readSettings reads what the cluster knows of its backups; the Secret is nil if it knows nothing.
func (cp *ControlPlane) readSettings(ctx context.Context) (settings backup.Settings, secret *corev1.Secret, err error) {
	secret = &corev1.Secret{}
	err = cp.admin.Get(ctx, ctrlclient.ObjectKey{Namespace: v1alpha1.PlatformNamespace, Name: backupObject}, secret)
	if apierrors.IsNotFound(err) {
		return settings, nil, nil
	}
	if err != nil {
		return settings, nil, fmt.Errorf("reading the settings of backups: %w", err)
	}
	if err := json.Unmarshal(secret.Data[backupSettings], &settings); err != nil {
		return settings, nil, fmt.Errorf("the Secret %s/%s does not hold the settings of backups: %w", v1alpha1.PlatformNamespace, backupObject, err)
	}
	return settings, secret, nil
}

// Snapshot is the store as it is now; see store.Snapshot.
func (cp *ControlPlane) Snapshot(ctx context.Context) (*store.Snapshot, error) {
	return cp.store.Snapshot(ctx)
}
