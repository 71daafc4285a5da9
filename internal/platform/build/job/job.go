package job

import "time"

// RegistryHost is the name of the cluster's registry in image references.
const RegistryHost = "registry.gantry.internal"

// NodePath is where, on the socket for images, those are that the node has already.
const NodePath = "/node/v2"

// Setup is what a building process may use. Paths are absolute.
type Setup struct {
	Dir    string   `json:"dir"`    // all that it keeps: cache, snapshots, temporary files
	Socket string   `json:"socket"` // where it takes requests
	Runc   string   `json:"runc"`
	Static string   `json:"static,omitempty"` // the file server that images of static sites hold
	Go     string   `json:"go,omitempty"`     // the go command; "" looks for one
	Cgroup string   `json:"cgroup"`           // above those of containers, from the root of the hierarchies
	DNS    []string `json:"dns,omitempty"`    // name servers; empty are the machine's
	// CacheBytes bounds what is kept for later builds.
	CacheBytes int64             `json:"cacheBytes"`
	Bases      map[string]string `json:"bases,omitempty"` // base images by language
}

// Ready is the line that a building process writes when it takes requests.
const Ready = "ready"

// Request asks for one image.
type Request struct {
	// Images is the socket where the registry and the node's images are served to this build, in plain HTTP.
	Images string `json:"images"`
	// Repository is what is pushed to, "registry.gantry.internal/shop/web". Source is read from it.
	Repository string `json:"repository"`
	// From is the repository that holds Source; "" is Repository.
	From   string    `json:"from,omitempty"`
	Source string    `json:"source"` // digest of a tar.gz; "" with Git
	Git    *Git      `json:"git,omitempty"`
	App    string    `json:"app"`
	Kind   string    `json:"kind,omitempty"`
	Path   string    `json:"path,omitempty"`
	File   string    `json:"file,omitempty"` // Dockerfile
	Commit string    `json:"commit,omitempty"`
	Time   time.Time `json:"time"` // of every file that is made; zero is 1970
	// Args are for the Dockerfile and the environment of generated ones.
	Args    map[string]string `json:"args,omitempty"`
	Secrets map[string][]byte `json:"secrets,omitempty"`
	// Builder is written into the provenance: who builds, as a URI.
	Builder string `json:"builder,omitempty"`
}

// Git is a repository to take the source from.
type Git struct {
	URL      string `json:"url"`
	Ref      string `json:"ref,omitempty"` // "" is the default branch
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty"`
}

// What an Event tells.
const (
	Commit = "commit" // Text: the hash of what was fetched by git
	Found  = "found"  // Kind, Text: by what; Processes
	Step   = "step"   // Text: "4/7 RUN go build"
	Log    = "log"    // Text: a line of output; Step
	Warn   = "warn"   // Text, File, Line
	Failed = "failed" // Text, File, Line, Exit: the last event
	Done   = "done"   // Image: the last event
)

// Event is one line of what a build says.
type Event struct {
	Time      time.Time         `json:"time"`
	Type      string            `json:"type"`
	Step      string            `json:"step,omitempty"`
	Text      string            `json:"text,omitempty"`
	Stderr    bool              `json:"stderr,omitempty"`
	Cached    bool              `json:"cached,omitempty"`
	Kind      string            `json:"kind,omitempty"`
	Processes map[string]string `json:"processes,omitempty"`
	File      string            `json:"file,omitempty"`
	Line      int               `json:"line,omitempty"`
	Exit      int               `json:"exit,omitempty"`
	Image     string            `json:"image,omitempty"`
}

// Usage is what is kept for later builds.
type Usage struct {
	Bytes   int64 `json:"bytes"`
	Entries int   `json:"entries"`
}
