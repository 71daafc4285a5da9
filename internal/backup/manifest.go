package backup

import "time"

// Format is the form that this version writes; it reads this one alone.
const Format = 1

// Names of what a backup holds. Those with a slash are folders.
const (
	headName     = "head.json"
	manifestName = "manifest.json"

	Snapshot   = "etcd.snapshot"   // of the store, in etcd's own form
	Encryption = "encryption.yaml" // the keys of what is encrypted in the store
	KeysDir    = "pki/"            // authorities and the key of service accounts
	BlobsDir   = "images/"         // content of images, a file a digest
	ImagesList = "images.json"     // which repository has which of them
	DumpsDir   = "dumps/"          // of addons
	VolumesDir = "volumes/"        // archives of local volumes
	GitDir     = "git.tar"         // what was pushed
)

// Head is what a backup begins with.
type Head struct {
	Format  int       `json:"format"`
	Gantry  string    `json:"gantry"`  // version that made it
	Cluster string    `json:"cluster"` // UID of the namespace kube-system
	Server  string    `json:"server"`  // the node that made it
	Taken   time.Time `json:"taken"`
}

// Manifest is what a backup ends with.
type Manifest struct {
	Head

	Revision      int64  `json:"revision"`
	EtcdCluster   string `json:"etcdCluster"`
	PodCIDR       string `json:"podCIDR"`
	ServiceCIDR   string `json:"serviceCIDR"`
	ClusterDomain string `json:"clusterDomain"`

	Bytes   int64    `json:"bytes"` // of everything, before it was compressed
	Keys    []string `json:"keys"`  // files of keys
	Images  []string `json:"images"`
	Dumps   []Dump   `json:"dumps"`
	Volumes []Volume `json:"volumes"`
	Missing []string `json:"missing"` // what is not in it, and why
}

// Dump is the data of an addon.
type Dump struct {
	Project string `json:"project"`
	App     string `json:"app"`
	Addon   string `json:"addon"`
	Type    string `json:"type"`
	File    string `json:"file"` // its name in the backup
	Bytes   int64  `json:"bytes"`
}

// Volume is the content of a local volume.
type Volume struct {
	Name   string `json:"name"`   // of the PersistentVolume
	Folder string `json:"folder"` // its name among local volumes
	Claim  string `json:"claim"`  // "project/name"
	File   string `json:"file"`
	Bytes  int64  `json:"bytes"`
}
