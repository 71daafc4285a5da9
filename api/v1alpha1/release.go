package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Release is one numbered state of an application: image and configuration. It is named APP-vN and does not change, but
// for Intent. Secrets are in it by name only.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced
// +kubebuilder:printcolumn:name="App",type=string,JSONPath=`.spec.app`
// +kubebuilder:printcolumn:name="Number",type=integer,JSONPath=`.spec.number`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.content.source.reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Release struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ReleaseSpec   `json:"spec,omitempty"`
	Status ReleaseStatus `json:"status,omitempty"`
}

// ReleaseList is a list of releases.
//
// +kubebuilder:object:root=true
type ReleaseList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Release `json:"items"`
}

// What can be asked of a release that is on its way.
const (
	IntentPromote = "promote" // the canary's next step now; of the last one, everything
	IntentAbort   = "abort"
)

// ReleaseSpec is what is released.
//
// +kubebuilder:validation:XValidation:rule="self.app == oldSelf.app && self.number == oldSelf.number && self.content == oldSelf.content",message="a release does not change: only intent and step may"
type ReleaseSpec struct {
	// App is the application's name.
	App string `json:"app"`
	// Number counts from 1.
	// +kubebuilder:validation:Minimum=1
	Number int64 `json:"number"`
	// Content is the application's spec at that time.
	Content AppSpec `json:"content"`
	// Intent is promote or abort, the only thing that may change; Step is the step that it was given for.
	// +kubebuilder:validation:Enum=promote;abort
	Intent string `json:"intent,omitempty"`
	// Step is the canary's step at which a promotion was asked for; a promotion of an earlier step does nothing.
	Step int32 `json:"step,omitempty"`
}

// Phases of a release.
const (
	ReleaseWaiting    = "Waiting"    // for a secret, an addon, or the release before
	ReleaseCommanding = "Commanding" // the release command runs
	ReleaseRolling    = "Rolling"
	ReleaseCanary     = "Canary"
	ReleaseLive       = "Live"
	ReleaseReplaced   = "Replaced"   // was live, a later one is
	ReleaseSuperseded = "Superseded" // a later one came before it was live
	ReleaseFailed     = "Failed"     // the release before serves
	ReleaseAborted    = "Aborted"    // the release before serves
)

// Reasons of a release that did not become live. The command line has an exit code for each.
const (
	ReasonCommandFailed  = "CommandFailed"  // release command or a test
	ReasonUnhealthy      = "Unhealthy"      // not ready in time
	ReasonCrashing       = "Crashing"       // ended three times
	ReasonImage          = "ImageNotFound"  // could not be pulled
	ReasonPort           = "WrongPort"      // listens on 127.0.0.1, or on another port than said
	ReasonAnalysis       = "AnalysisFailed" // the canary's errors or times
	ReasonAborted        = "Aborted"        // somebody asked for it
	ReasonSuperseded     = "Superseded"
	ReasonSecretMissing  = "SecretMissing"
	ReasonAddonNotReady  = "AddonNotReady"
	ReasonNoRoom         = "NoRoom" // no node has what it asks for
	ReasonVolumeNotReady = "VolumeNotReady"
)

// ReleaseStatus is how far a release is.
type ReleaseStatus struct {
	Phase string `json:"phase,omitempty"`
	// Reason is one word for why it is not live.
	Reason string `json:"reason,omitempty"`
	// Message says what happened and what to do.
	Message string `json:"message,omitempty"`
	// Warning is what whoever released this should know, though it went well.
	Warning string `json:"warning,omitempty"`
	// Log is the last lines of what failed.
	Log string `json:"log,omitempty"`
	// Started and Finished are when it began and when it was live, failed or was given up.
	Started  *metav1.Time `json:"started,omitempty"`
	Finished *metav1.Time `json:"finished,omitempty"`
	// Canary is where a canary is.
	Canary *CanaryStatus `json:"canary,omitempty"`
	// Progress is how many containers of the release are ready, by process.
	Progress map[string]ProcessStatus `json:"progress,omitempty"`
}

// CanaryStatus is where a canary is.
type CanaryStatus struct {
	// Step is the index of the step, from 0.
	Step int32 `json:"step"`
	// Weight is the percentage of requests that it gets.
	Weight int32 `json:"weight"`
	// Since is when the step began.
	Since metav1.Time `json:"since"`
	// Requests, Errors and P95 are what the gateways counted in the step.
	Requests int64            `json:"requests,omitempty"`
	Errors   int64            `json:"errors,omitempty"`
	P95      *metav1.Duration `json:"p95,omitempty"`
	// BaseRequests and BaseErrors are what had been counted when the step began.
	BaseRequests int64 `json:"baserequests,omitempty"`
	BaseErrors   int64 `json:"baseerrors,omitempty"`
	// Waits says that the step ends by `gantry promote` only.
	Waits bool `json:"waits,omitempty"`
}
