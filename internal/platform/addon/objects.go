package addon

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/addon/pack"
	"gantry.dev/gantry/internal/platform/app/render"
)

const (
	// annotationData is on an addon's volume: the type and version whose data it holds, such as "postgres 17".
	annotationData = "gantry.dev/addon-data"
	// annotationPassword is on pods: a digest of the password that they began with.
	annotationPassword = "gantry.dev/addon-password"

	defaultSize = "1Gi"
	keptBackups = 7
	dataPath    = "/data"
	backupPath  = "/backup"
)

// input is everything that the objects of an addon follow from.
type input struct {
	app     *v1alpha1.App
	name    string // in the application
	addon   v1alpha1.Addon
	pack    *pack.Package
	version string
	image   string
	// credentials are what the Secret holds; mark is a digest of the password in them.
	credentials map[string]string
	mark        string
	// backups says that there is a volume for backups, even if none are made now.
	backups bool
	stopped bool
	// hook ends the program by a hook instead of a stop signal.
	hook bool
}

func (in input) object() string { return v1alpha1.ObjectName(in.app.Name, in.name) }
func (in input) backup() string { return v1alpha1.BackupName(in.app.Name, in.name) }

// labels are those of everything of an addon. A NetworkPolicy can tell the server by v1alpha1.LabelPart.
func (in input) labels(part string) map[string]string {
	out := map[string]string{
		v1alpha1.LabelApp: in.app.Name, v1alpha1.LabelAddon: in.name, render.LabelManagedBy: render.ManagedBy, "app.kubernetes.io/name": in.pack.Name,
	}
	if part != "" {
		out[v1alpha1.LabelPart] = part
	}
	return out
}

func (in input) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: in.app.Namespace, Name: name, Labels: in.labels(""), OwnerReferences: []metav1.OwnerReference{render.Owner(in.app)},
	}
}

// objects are what an addon consists of, in the order in which they are to be made.
func (in input) objects() []client.Object {
	out := []client.Object{in.secret(), in.claim(in.object())}
	if in.backups {
		out = append(out, in.claim(in.backup()))
	}
	out = append(out, in.service(), in.server())
	if in.addon.Backup != "" {
		out = append(out, in.cronJob())
	}
	return out
}

func (in input) secret() *corev1.Secret {
	out := &corev1.Secret{ObjectMeta: in.meta(in.object()), Data: map[string][]byte{}}
	for key, value := range in.credentials {
		out.Data[key] = []byte(value)
	}
	return out
}

// claim is a volume. Nobody owns it, so that it stays when all else goes.
func (in input) claim(name string) *corev1.PersistentVolumeClaim {
	size := resource.MustParse(defaultSize)
	if in.addon.Size != nil {
		size = *in.addon.Size
	}
	out := &corev1.PersistentVolumeClaim{ObjectMeta: in.meta(name), Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: size}},
	}}
	out.OwnerReferences = nil
	if name == in.object() {
		out.Annotations = map[string]string{annotationData: in.pack.Name + " " + in.version}
	}
	return out
}

func (in input) service() *corev1.Service {
	return &corev1.Service{ObjectMeta: in.meta(in.object()), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, Selector: in.selector(),
		Ports: []corev1.ServicePort{{Name: in.pack.Name, Protocol: corev1.ProtocolTCP, Port: in.pack.Port, TargetPort: intstr.FromInt32(in.pack.Port)}},
	}}
}

func (in input) selector() map[string]string {
	return map[string]string{v1alpha1.LabelApp: in.app.Name, v1alpha1.LabelAddon: in.name, v1alpha1.LabelPart: v1alpha1.AddonServer}
}

// server is the StatefulSet: it makes sure that never two pods have the data.
func (in input) server() *appsv1.StatefulSet {
	replicas := int32(1)
	if in.stopped {
		replicas = 0
	}
	pod := in.pod("127.0.0.1", in.pack.Start)
	c := &pod.Containers[0]
	c.Ports = []corev1.ContainerPort{{Name: in.pack.Name, ContainerPort: in.pack.Port, Protocol: corev1.ProtocolTCP}}
	c.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: in.pack.Memory, corev1.ResourceCPU: in.pack.CPU}
	c.Lifecycle = &corev1.Lifecycle{StopSignal: new(corev1.Signal(in.pack.Stop.Signal))}
	if in.hook { // what ends a container after it asks for less, and changes nothing
		kill := "kill -" + strings.TrimPrefix(in.pack.Stop.Signal, "SIG") + " 1"
		c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", kill}}}}
	}
	// Recovery may take long and must not be killed. What hangs is not restarted: that loses more than it helps.
	c.StartupProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", in.pack.Ready}}},
		PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 3600, SuccessThreshold: 1,
	}
	c.ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(in.pack.Port)}},
		PeriodSeconds: 10, TimeoutSeconds: 5, FailureThreshold: 3, SuccessThreshold: 1,
	}
	mount(&pod, "data", in.object(), dataPath)
	if in.backups {
		mount(&pod, "backup", in.backup(), backupPath)
	}
	pod.TerminationGracePeriodSeconds = &in.pack.Stop.Seconds
	return &appsv1.StatefulSet{ObjectMeta: in.meta(in.object()), Spec: appsv1.StatefulSetSpec{
		Replicas: &replicas, ServiceName: in.object(), Selector: &metav1.LabelSelector{MatchLabels: in.selector()},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: in.labels(v1alpha1.AddonServer), Annotations: map[string]string{annotationPassword: in.mark}}, Spec: pod,
		},
	}}
}

func mount(pod *corev1.PodSpec, name, claim, path string) {
	pod.Volumes = append(pod.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
	}})
	pod.Containers[0].VolumeMounts = append(pod.Containers[0].VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path})
}

// pod runs a script of the package; host is where the server is for it.
func (in input) pod(host, script string) corev1.PodSpec {
	env := []corev1.EnvVar{{Name: "ADDON_PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: in.object()}, Key: pack.PasswordKey(in.name),
	}}}}
	values := in.pack.Environment(host)
	for _, key := range slices.Sorted(maps.Keys(values)) {
		env = append(env, corev1.EnvVar{Name: key, Value: values[key]})
	}
	return corev1.PodSpec{
		AutomountServiceAccountToken: new(false), EnableServiceLinks: new(false),
		OS: &corev1.PodOS{Name: corev1.Linux}, // what a stop signal needs
		SecurityContext: &corev1.PodSecurityContext{
			RunAsUser: &in.pack.UID, RunAsGroup: &in.pack.UID, RunAsNonRoot: new(true), FSGroup: &in.pack.UID,
			// Modes that the program set stay as they are.
			FSGroupChangePolicy: new(corev1.FSGroupChangeOnRootMismatch),
			SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name: in.pack.Name, Image: in.image, Command: []string{"sh", "-c", script}, Env: env,
			TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
		}},
	}
}

// cronJob makes backups.
func (in input) cronJob() *batchv1.CronJob {
	pod := in.pod(in.object(), in.backupScript())
	pod.Containers[0].Command = append(pod.Containers[0].Command, in.pack.Dump) // $0 of the script
	pod.RestartPolicy = corev1.RestartPolicyNever
	mount(&pod, "backup", in.backup(), backupPath)
	return &batchv1.CronJob{ObjectMeta: in.meta(in.backup()), Spec: batchv1.CronJobSpec{
		Schedule: schedule(in.addon.Backup, in.app.Namespace+"/"+in.object()), TimeZone: new("Etc/UTC"), Suspend: new(in.stopped),
		ConcurrencyPolicy: batchv1.ForbidConcurrent, StartingDeadlineSeconds: new(int64(3600)),
		SuccessfulJobsHistoryLimit: new(int32(1)), FailedJobsHistoryLimit: new(int32(1)),
		JobTemplate: batchv1.JobTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: in.labels(v1alpha1.AddonBackup)},
			Spec: batchv1.JobSpec{
				BackoffLimit: new(int32(2)), ActiveDeadlineSeconds: new(int64(6 * 3600)),
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: in.labels(v1alpha1.AddonBackup)}, Spec: pod},
			},
		},
	}}
}

// backupScript dumps to a file that gets its name when it is whole, then removes the oldest.
func (in input) backupScript() string {
	return fmt.Sprintf(`set -eu
umask 027
cd %[1]s
name="$(date -u +%%Y-%%m-%%dT%%H%%M%%SZ).%[2]s"
rm -f .*.%[2]s.part
sh -c "$0" > ".$name.part"
test -s ".$name.part"
sync
mv ".$name.part" "$name"
ls -1r | grep '^[0-9].*\.%[2]s$' | tail -n +%[3]d | while read -r old; do rm -f "$old"; done
echo "$name"
`, backupPath, in.pack.Extension, keptBackups+1)
}

// schedule is when backups are made. Those with a word for it get a minute of their own, so that not all begin at once.
func schedule(backup, key string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // never fails
	minute := h.Sum32() % 60
	switch strings.TrimSpace(backup) {
	case "hourly":
		return fmt.Sprintf("%d * * * *", minute)
	case "daily":
		return fmt.Sprintf("%d 3 * * *", minute)
	case "weekly":
		return fmt.Sprintf("%d 3 * * 0", minute)
	}
	return backup
}
