package v1alpha1

// Labels and annotations of the objects that belong to an application.
const (
	// LabelApp is the application that an object belongs to.
	LabelApp = "gantry.dev/app"
	// LabelProcess is the process of the application that an object belongs to, such as "web".
	LabelProcess = "gantry.dev/process"
	// LabelRelease is the number of the release that a pod, ReplicaSet or Job was made for, such as "12".
	LabelRelease = "gantry.dev/release"
	// LabelAddon is the addon of the application that an object belongs to, such as "db".
	LabelAddon = "gantry.dev/addon"
	// LabelPart is what a pod of an addon is: AddonServer or AddonBackup.
	LabelPart = "gantry.dev/part"
	// LabelTrack is "stable" or "canary" on pods of a process that takes requests.
	LabelTrack = "gantry.dev/track"

	// AnnotationWake is set by a gateway on a Service that has no endpoint but a request that waits. The value is the
	// time in RFC 3339 with nanoseconds.
	AnnotationWake = "gateway.gantry.dev/wake"
	// AnnotationHold on a Service asks gateways to hold requests while it has no endpoint: the value is for how long,
	// such as "60s".
	AnnotationHold = "gateway.gantry.dev/hold"
	// AnnotationAsleep is set on the Deployment of a process that sleeps. The value is that of AnnotationWake on its Service
	// when it fell asleep, or "-".
	AnnotationAsleep = "gantry.dev/asleep"
	// AnnotationSecrets is set on a Release: fingerprints of the secrets that it began with, as a JSON object.
	AnnotationSecrets = "gantry.dev/secrets"
	// ConditionListening is a condition of a pod of a process. Its message lists where the pod listens by TCP, such as
	// "0.0.0.0:8080 127.0.0.1:9000".
	ConditionListening = "gantry.dev/listening"
	// AnnotationRemoved is set on an application that was removed and can still be brought back. The value is the time of
	// its removal in RFC 3339.
	AnnotationRemoved = "gantry.dev/removed"
)

// The ConfigMap that says how the platform is reached. Its keys are in the constants PlatformKey….
const (
	PlatformNamespace = "gantry-system"
	PlatformConfig    = "platform"

	// PlatformKeyDomain is a domain whose every name leads here: applications are served at NAME.DOMAIN.
	PlatformKeyDomain = "domain"
	// PlatformKeyAddress is the address by which the world reaches the gateways; needed behind NAT only.
	PlatformKeyAddress = "publicAddress"
	// PlatformKeyIngressClass is the class of applications' Ingresses on a cluster without the platform's Gateway; without it they
	// are left to the class that is marked as the default, or get the only one.
	PlatformKeyIngressClass = "ingressClass"
	// PlatformKeyIssuer is a ClusterIssuer of cert-manager that makes certificates for applications' Ingresses.
	PlatformKeyIssuer = "clusterIssuer"
	// PlatformKeyAddonImage is how keys begin that name the image of an addon's type and version, such as
	// "addon.postgres.17".
	PlatformKeyAddonImage = "addon."
)

// SecretName returns the name of the Secret that holds what `gantry secret set` was given for an application. It may be
// there before the application is.
func SecretName(app string) string { return app + "-secrets" }

// ObjectName returns the name of the objects of a process of an application.
func ObjectName(app, process string) string { return app + "-" + process }

// Parts of an addon, the values of LabelPart.
const (
	AddonServer = "server"
	AddonBackup = "backup"
)

// BackupName returns the name of the CronJob and of the volume of an addon's backups.
func BackupName(app, addon string) string { return ObjectName(app, addon) + "-backup" }

// WebProcess is the process that takes requests.
const WebProcess = "web"
