package pack

import (
	"embed"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"
)

//go:embed *.yaml
var files embed.FS

// Package is one program and how it is run.
type Package struct {
	Name string `json:"name"` // as addons say it: postgres
	// Addon is what the first addon of the type is called if nothing else is said.
	Addon    string   `json:"addon"`
	Versions []string `json:"versions"` // major versions, the newest first
	Image    string   `json:"image"`    // with {version}
	// Variable is the environment variable that holds the address of the only addon of the type.
	Variable string `json:"variable"`
	URL      string `json:"url"` // with {password} and {host}
	User     string `json:"user,omitempty"`
	Database string `json:"database,omitempty"`
	Port     int32  `json:"port"`
	UID      int64  `json:"uid"` // of the program's user and group in the image

	Memory resource.Quantity `json:"memory"` // reserved
	CPU    resource.Quantity `json:"cpu"`
	Stop   Stop              `json:"stop"`
	Env    map[string]string `json:"env,omitempty"`

	// Scripts of a POSIX shell. Dump writes the data to its output, Load reads it from its input.
	Start   string `json:"start"`
	Ready   string `json:"ready"`
	Dump    string `json:"dump"`
	Load    string `json:"load"`
	Connect string `json:"connect"`
	// Magic is how a dump begins, LoadText the script for what begins otherwise; both may be empty.
	Magic    string `json:"magic,omitempty"`
	LoadText string `json:"loadtext,omitempty"`
	// Restart says that what was loaded is there after a restart.
	Restart bool `json:"restart,omitempty"`
	// Extension is that of the names of dumps.
	Extension string `json:"extension"`
}

// Stop is how the program is ended.
type Stop struct {
	Signal  string `json:"signal"`
	Seconds int64  `json:"seconds"` // before it is killed
}

// Find returns a package. The error of an unknown one says which there are.
func Find(name string) (*Package, error) {
	text, err := files.ReadFile(name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("there is no addon type %q; there is %s", name, strings.Join(Names(), ", "))
	}
	var out Package
	if err := yaml.UnmarshalStrict(text, &out); err != nil {
		return nil, fmt.Errorf("reading the package %s: %w", name, err)
	}
	return &out, nil
}

// Names are those of all packages.
func Names() (out []string) {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		out = append(out, strings.TrimSuffix(entry.Name(), ".yaml"))
	}
	return out
}

// Version is the version to run: the one that is asked for, which must be known, or else the newest.
func (p *Package) Version(asked string) (string, error) {
	if asked == "" {
		return p.Versions[0], nil
	}
	if !slices.Contains(p.Versions, asked) {
		return "", fmt.Errorf("%s has no version %s here; there is %s", p.Name, asked, strings.Join(p.Versions, ", "))
	}
	return asked, nil
}

// ImageOf is the image of a version; settings are the platform's, which may name another by SettingImage.
func (p *Package) ImageOf(version string, settings map[string]string) string {
	if image := strings.TrimSpace(settings[SettingImage(p.Name, version)]); image != "" {
		return image
	}
	return strings.ReplaceAll(p.Image, "{version}", version)
}

// SettingImage is the key of the platform's settings that names the image of a version.
func SettingImage(name, version string) string { return "addon." + name + "." + version }

// Prefix is how the environment variables of an addon begin: DB_ of db.
func Prefix(addon string) string {
	return strings.ToUpper(strings.ReplaceAll(addon, "-", "_")) + "_"
}

// PasswordKey is the key of the password among the credentials of an addon.
func PasswordKey(addon string) string { return Prefix(addon) + "PASSWORD" }

// Credentials are the environment variables that an addon gives its application. only adds the variable that the only
// addon of a type has.
func (p *Package) Credentials(addon, host, password string, only bool) map[string]string {
	prefix := Prefix(addon)
	url := strings.NewReplacer("{password}", password, "{host}", host).Replace(p.URL)
	out := map[string]string{
		prefix + "URL": url, prefix + "HOST": host, prefix + "PORT": strconv.Itoa(int(p.Port)), PasswordKey(addon): password,
	}
	if p.User != "" {
		out[prefix+"USER"] = p.User
	}
	if p.Database != "" {
		out[prefix+"NAME"] = p.Database
	}
	if only {
		out[p.Variable] = url
	}
	return out
}

// Environment is what the package's scripts need beside the password; host is where the program listens.
func (p *Package) Environment(host string) map[string]string {
	out := maps.Clone(p.Env)
	if out == nil {
		out = map[string]string{}
	}
	out["ADDON_HOST"] = host
	return out
}
