package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// App is an application: processes made from one image, how they are reached, and what they need. Its namespace is the
// project.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=app
// +kubebuilder:printcolumn:name="Release",type=integer,JSONPath=`.status.release`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="URL",type=string,JSONPath=`.status.urls[0]`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type App struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AppSpec   `json:"spec,omitempty"`
	Status AppStatus `json:"status,omitempty"`
}

// AppList is a list of applications.
//
// +kubebuilder:object:root=true
type AppList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []App `json:"items"`
}

// AppSpec is what a release is made of. A change of it makes a release, but for what is named as acting at once.
type AppSpec struct {
	// Image is what the processes run. Deploys from source set it to the digest that their build made.
	Image string `json:"image,omitempty"`
	// Build is how the image was made; nil where the file names an image.
	Build *BuildSource `json:"build,omitempty"`
	// Release runs once before a release gets requests, such as migrations.
	Release *ReleaseCommand `json:"release,omitempty"`
	// Env is the environment that the file declares.
	Env map[string]string `json:"env,omitempty"`
	// Config is the environment that `gantry env set` declares. Env goes before it.
	Config map[string]string `json:"config,omitempty"`
	// Secrets are names in the Secret of the application (SecretName) that become environment variables. A release
	// waits while one is unset.
	// +listType=set
	Secrets []string `json:"secrets,omitempty"`
	// Addons are services that the application owns, by their name in it.
	Addons map[string]Addon `json:"addons,omitempty"`
	// Domains are further host names of the web process. They act at once.
	// +listType=map
	// +listMapKey=name
	Domains []Domain `json:"domains,omitempty"`
	// Processes are what runs, by name. The one named web takes requests.
	Processes map[string]Process `json:"processes,omitempty"`
	// Rollout is how a release replaces the one before; nil is rolling.
	Rollout *Rollout `json:"rollout,omitempty"`
	// Placement is where pods may run.
	Placement *Placement `json:"placement,omitempty"`
	// Source says where this came from. It makes no release by itself.
	Source *Source `json:"source,omitempty"`
	// Expires is when a preview is removed with everything that it owns.
	Expires *metav1.Time `json:"expires,omitempty"`
	// Restarts counts the restarts that were asked for; a change restarts every process at once, without a release.
	// +kubebuilder:validation:Minimum=0
	Restarts int64 `json:"restarts,omitempty"`
	// Suspended ends all processes and keeps everything else.
	Suspended bool `json:"suspended,omitempty"`
}

// BuildSource says how an image is made.
type BuildSource struct {
	// Path is the folder with the source, relative to the file.
	Path string `json:"path,omitempty"`
	// Git is a repository to build from instead of a folder.
	Git *GitSource `json:"git,omitempty"`
	// Dockerfile is the file to build with, relative to Path, if it is not found by itself.
	Dockerfile string `json:"dockerfile,omitempty"`
	// Registry is where the image is pushed to, as Registry/NAME, on a cluster without a registry of its own.
	Registry string `json:"registry,omitempty"`
	// Args are build arguments.
	Args map[string]string `json:"args,omitempty"`
	// Secrets are names in the application's Secret that the build may read and the image never holds.
	// +listType=set
	Secrets []string `json:"secrets,omitempty"`
}

// GitSource is a repository and what to take of it.
type GitSource struct {
	URL string `json:"url"`
	// Ref is a branch, tag or commit; empty is the default branch.
	Ref string `json:"ref,omitempty"`
	// Secret is a name in the application's Secret that holds USER:PASSWORD or a token.
	Secret string `json:"secret,omitempty"`
}

// ReleaseCommand is what runs once before a release gets requests.
type ReleaseCommand struct {
	Command string `json:"command"`
	// Timeout is how long it may take; nil is ten minutes.
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// Addon is a service such as a database that belongs to an application.
type Addon struct {
	// Type is postgres or redis.
	// +kubebuilder:validation:Enum=postgres;redis
	Type string `json:"type"`
	// Version is the major version; empty is the newest that the package knows.
	Version string `json:"version,omitempty"`
	// Size is the size of its volume.
	Size *resource.Quantity `json:"size,omitempty"`
	// Backup is when it is backed up: daily, hourly, weekly or a cron expression; empty is never.
	Backup string `json:"backup,omitempty"`
	// Added says that a command added it: deploys of a file that does not name it keep it.
	Added bool `json:"added,omitempty"`
}

// Domain is a host name of an application.
type Domain struct {
	Name string `json:"name"`
	// Redirect is the host name that requests are sent to instead of being served.
	Redirect string `json:"redirect,omitempty"`
}

// Process is one kind of container of an application.
type Process struct {
	// Command is run by a shell if the image has one, and split into words if not; empty is the image's own.
	Command string `json:"command,omitempty"`
	// Port is where the process listens; 0 is what PORT says, or else the one port it is found to listen on.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
	// Health is how readiness and liveness are told.
	Health *Health `json:"health,omitempty"`
	// Scale is how many there are; nil is one. It acts at once.
	Scale *Scale `json:"scale,omitempty"`
	// CPU is the number of CPUs that are reserved.
	CPU *resource.Quantity `json:"cpu,omitempty"`
	// Memory is what is reserved and what it may use at most.
	Memory *resource.Quantity `json:"memory,omitempty"`
	// Volumes are kept over restarts, by the path that they are mounted at.
	Volumes map[string]Volume `json:"volumes,omitempty"`
	// Stop is how the process is ended.
	Stop *Stop `json:"stop,omitempty"`
	// Schedule is a cron expression: then the process runs at its times and ends, instead of running for ever.
	Schedule string `json:"schedule,omitempty"`
	// Timezone is where the schedule's times are, such as Europe/Berlin; empty is UTC.
	Timezone string `json:"timezone,omitempty"`
}

// Health is how a process says that it can take requests.
type Health struct {
	// Path is asked with GET; empty asks for nothing but an open port.
	Path string `json:"path,omitempty"`
	// Grace is how long it may take to start; nil is one minute.
	Grace *metav1.Duration `json:"grace,omitempty"`
}

// Scale is how many containers of a process there are.
type Scale struct {
	// Min is the least number; 0 lets the process sleep while nobody asks.
	// +kubebuilder:validation:Minimum=0
	Min *int32 `json:"min,omitempty"`
	// Max is the most; nil is Min, but at least 1.
	// +kubebuilder:validation:Minimum=1
	Max *int32 `json:"max,omitempty"`
	// Concurrency is how many requests at once each should have.
	Concurrency *int32 `json:"concurrency,omitempty"`
	// Requests is how many requests a second each should have.
	Requests *int32 `json:"requests,omitempty"`
	// CPU is how many percent of the reserved CPU each should use.
	CPU *int32 `json:"cpu,omitempty"`
	// Memory is how many percent of its memory each should use.
	Memory *int32 `json:"memory,omitempty"`
	// Idle is how long nobody may have asked before it sleeps, and the time of cooling down; nil is ten minutes.
	Idle *metav1.Duration `json:"idle,omitempty"`
	// Warmup is how long a new container is not judged by its CPU.
	Warmup *metav1.Duration `json:"warmup,omitempty"`
}

// Volume is storage that a process keeps.
type Volume struct {
	Name string `json:"name"`
	// Size is what is asked for; nil is 1Gi.
	Size *resource.Quantity `json:"size,omitempty"`
}

// Stop is how a process is ended.
type Stop struct {
	// Signal is sent first, without SIG: TERM, INT, QUIT ...; empty is the image's own.
	Signal string `json:"signal,omitempty"`
	// Timeout is how long it may take to end; nil is thirty seconds.
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// Strategies of a rollout.
const (
	RolloutRolling = "rolling"
	RolloutCanary  = "canary"
)

// Rollout is how a release replaces the one before.
type Rollout struct {
	// +kubebuilder:validation:Enum=rolling;canary
	Strategy string `json:"strategy,omitempty"`
	// Steps are the percentages of requests that a canary gets, one after the other; empty is 5, 25, 50, 100.
	// +listType=atomic
	Steps []int32 `json:"steps,omitempty"`
	// Every is how long a step lasts; nil is five minutes. A zero waits at each step for `gantry promote`.
	Every *metav1.Duration `json:"every,omitempty"`
	// Errors is the share of failed requests (status 5xx, or no answer) that aborts, such as "1%".
	Errors string `json:"errors,omitempty"`
	// P95 is the time within which 95 of 100 requests must be answered.
	P95 *metav1.Duration `json:"p95,omitempty"`
	// Sample is the least number of requests in a step before it is judged by them; 0 is 100.
	Sample int32 `json:"sample,omitempty"`
	// Test is a command that runs in a container of the release at each step; when it fails, the rollout aborts.
	Test string `json:"test,omitempty"`
}

// Placement is where pods may run.
type Placement struct {
	// Labels are what a node must have.
	Labels map[string]string `json:"labels,omitempty"`
	// Spread is what pods of a process are spread over: node or zone.
	// +kubebuilder:validation:Enum=node;zone
	Spread string `json:"spread,omitempty"`
}

// Source says where an application came from.
type Source struct {
	// Origin is the repository's address or the machine and folder, such as "git@example.com:acme/shop.git" or
	// "laptop:/home/ann/shop". A deploy from elsewhere needs --take-over.
	Origin string `json:"origin,omitempty"`
	// Commit is the commit's hash, with "+dirty" where the folder differs from it.
	Commit string `json:"commit,omitempty"`
	// File is the gantry.yaml, relative to the origin; empty if there was none.
	File string `json:"file,omitempty"`
	// Lines are the lines of File that declare keys of env.
	Lines map[string]int32 `json:"lines,omitempty"`
	// Stage is the stage that was deployed.
	Stage string `json:"stage,omitempty"`
	// Reason is why, as a list of releases shows it: "deploy", "rollback to v3", "env LOG_LEVEL".
	Reason string `json:"reason,omitempty"`
	// By is who asked for it.
	By string `json:"by,omitempty"`
	// ID is another one for each deploy, so that who asked for it finds its release.
	ID string `json:"id,omitempty"`
}

// Phases of an application.
const (
	AppPending   = "Pending"   // nothing was released yet
	AppDeploying = "Deploying" // a release is on its way
	AppRunning   = "Running"
	AppSleeping  = "Sleeping" // no container runs; a request wakes it
	AppUnhealthy = "Unhealthy"
	AppRemoved   = "Removed" // can be brought back
)

// AppStatus is what is known of an application.
type AppStatus struct {
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Phase is one word for how it is.
	Phase string `json:"phase,omitempty"`
	// Message says why, in a sentence.
	Message string `json:"message,omitempty"`
	// Release is the number of the release that serves; 0 is none.
	Release int64 `json:"release,omitempty"`
	// Latest is the number of the newest release.
	Latest int64 `json:"latest,omitempty"`
	// URLs are the addresses, the best one first.
	// +listType=atomic
	URLs []string `json:"urls,omitempty"`
	// Processes is what runs, by name.
	Processes map[string]ProcessStatus `json:"processes,omitempty"`
	// Addons is how the addons are, by name.
	Addons map[string]AddonStatus `json:"addons,omitempty"`
	// Domains says of each domain whether it points here and has a certificate.
	// +listType=map
	// +listMapKey=name
	Domains []DomainStatus `json:"domains,omitempty"`
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ProcessStatus is what runs of a process.
type ProcessStatus struct {
	Desired int32 `json:"desired"`
	Ready   int32 `json:"ready"`
	// Port is where it listens, found or said.
	Port int32 `json:"port,omitempty"`
}

// AddonStatus is how an addon is.
type AddonStatus struct {
	Type    string `json:"type,omitempty"`
	Ready   bool   `json:"ready"`
	Message string `json:"message,omitempty"`
	// Secret holds its credentials; its keys are environment variables.
	Secret string `json:"secret,omitempty"`
	// LastBackup is when it was last backed up.
	LastBackup *metav1.Time `json:"lastbackup,omitempty"`
}

// DomainStatus is how a domain is.
type DomainStatus struct {
	Name string `json:"name"`
	// Ready says that it points here and has a certificate.
	Ready bool `json:"ready"`
	// Message says what to do where it is not.
	Message string `json:"message,omitempty"`
	// Expires is until when its certificate holds.
	Expires *metav1.Time `json:"expires,omitempty"`
}
