package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Build makes an image from source and pushes it to the cluster's registry.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced
// +kubebuilder:printcolumn:name="App",type=string,JSONPath=`.spec.app`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Step",type=string,JSONPath=`.status.step`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Build struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   BuildSpec   `json:"spec,omitempty"`
	Status BuildStatus `json:"status,omitempty"`
}

// BuildList is a list of builds.
//
// +kubebuilder:object:root=true
type BuildList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Build `json:"items"`
}

// Ways to build.
const (
	KindDockerfile = "dockerfile"
	KindGo         = "go"
	KindStatic     = "static"
	KindNode       = "node"
	KindPython     = "python"
	KindProcfile   = "procfile" // a language of its own is found beside it
)

// BuildSpec is what is built.
type BuildSpec struct {
	// App is the application that the image is for.
	App string `json:"app"`
	// Source is the digest of a tar archive, compressed with gzip, that was uploaded to the image repository of the application
	// as a layer ("sha256:…"); empty with Git.
	Source string `json:"source,omitempty"`
	// Git is where the source is fetched instead.
	Git *GitSource `json:"git,omitempty"`
	// Kind is the way to build, one of the Kind constants; empty finds out.
	Kind string `json:"kind,omitempty"`
	// Path is the folder in the source to build in.
	Path string `json:"path,omitempty"`
	// Dockerfile is relative to Path; empty is "Dockerfile".
	Dockerfile string            `json:"dockerfile,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	// Secrets are names in the application's Secret.
	// +listType=set
	Secrets []string `json:"secrets,omitempty"`
	// Image is the repository to push to; empty is the application's in the cluster's registry.
	Image string `json:"image,omitempty"`
	// Commit is written into the image and its provenance.
	Commit string `json:"commit,omitempty"`
	// Time is the time that files of the image get, so that equal source gives equal images.
	Time *metav1.Time `json:"time,omitempty"`
	// Cancel ends the build.
	Cancel bool `json:"cancel,omitempty"`
}

// Phases of a build.
const (
	BuildWaiting   = "Waiting"
	BuildRunning   = "Running"
	BuildSucceeded = "Succeeded"
	BuildFailed    = "Failed"
	BuildCanceled  = "Canceled"
)

// BuildStatus is how far a build is.
type BuildStatus struct {
	Phase string `json:"phase,omitempty"`
	// Kind is the way that was found, and Found says what it was found by.
	Kind  string `json:"kind,omitempty"`
	Found string `json:"found,omitempty"`
	// Commit is what was fetched of a git repository.
	Commit string `json:"commit,omitempty"`
	// Step is what is being done, such as "4/7 RUN go build".
	Step string `json:"step,omitempty"`
	// Message says what failed and where: file, line, exit code.
	Message string `json:"message,omitempty"`
	// Image is the reference with digest.
	Image string `json:"image,omitempty"`
	// Node is where it is built.
	Node     string       `json:"node,omitempty"`
	Started  *metav1.Time `json:"started,omitempty"`
	Finished *metav1.Time `json:"finished,omitempty"`
	// Processes are those that a Procfile or package.json declared, by name.
	Processes map[string]string `json:"processes,omitempty"`
}
