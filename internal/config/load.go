package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Options is where Load reads from. Nil members mean: not asked.
type Options struct {
	Flags    *pflag.FlagSet // flags made by Register; only those the user changed count
	Environ  []string       // as os.Environ returns it
	ReadFile func(path string) ([]byte, error)
	Hostname func() (string, error)
	// NodeIP finds this machine's address; it must skip addresses inside pods.
	// An invalid address and no error mean that there is none.
	NodeIP func(pods netip.Prefix) (netip.Addr, error)
}

// setting is the winning value of one key and where it came from.
type setting struct {
	values []string
	where  string
}

// Load merges and checks all sources. The error joins one Error for each wrong setting.
func Load(opts Options) (Config, error) {
	found := map[string]setting{}
	var problems []error

	fromEnv, envFile, err := readEnviron(opts.Environ)
	problems = append(problems, err)
	fromFlags, flagFile := readFlags(opts.Flags)
	file := setting{}
	switch {
	case flagFile.where != "":
		file = flagFile
	case envFile.where != "":
		file = envFile
	}
	if file.where != "" {
		fromFile, err := readFile(file, opts.ReadFile)
		problems = append(problems, err)
		merge(found, fromFile)
	}
	merge(found, fromEnv)
	merge(found, fromFlags)

	c := Config{given: map[string]string{}}
	for _, key := range Keys() {
		s, given := found[key.Name]
		if !given {
			if key.Default == "" {
				continue
			}
			s = setting{values: []string{key.Default}}
		} else {
			c.given[key.Name] = s.where
		}
		problems = append(problems, at(s.where, key.set(&c, s.values)))
	}
	if err := errors.Join(problems...); err != nil {
		return Config{}, err
	}
	if err := c.fill(opts); err != nil {
		return Config{}, err
	}
	if err := c.check(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// fill finds the defaults that depend on the machine.
func (c *Config) fill(opts Options) error {
	if c.Kubeconfig == "" {
		c.Kubeconfig = filepath.Join(c.DataDir, "admin.kubeconfig")
	}
	if c.KubeletDir == "" && c.DataDir == DefaultDataDir {
		c.KubeletDir = kubeletDir
	}
	if c.Manifests == "" {
		c.Manifests = filepath.Join(c.DataDir, "manifests")
	}
	if c.NodeName == "" && opts.Hostname != nil {
		name, err := opts.Hostname()
		if err != nil {
			return &Error{Where: "--" + KeyNodeName, Problem: fmt.Sprintf("the host name cannot be read: %v", err), Want: "give --node-name"}
		}
		name = strings.ToLower(name)
		if len(validation.IsDNS1123Subdomain(name)) > 0 {
			return &Error{Where: "--" + KeyNodeName, Problem: fmt.Sprintf("the host name %q cannot name a node", name), Want: "give --node-name, such as node-1"}
		}
		c.NodeName = name
	}
	if !c.NodeIP.IsValid() && opts.NodeIP != nil {
		addr, err := opts.NodeIP(c.PodCIDR)
		if err != nil {
			return &Error{Where: "--" + KeyNodeIP, Problem: fmt.Sprintf("this machine's addresses cannot be read: %v", err), Want: "give --node-ip"}
		}
		c.NodeIP = addr
	}
	return nil
}

// at fills in where an error of a setter happened.
func at(where string, err error) error {
	if e, ok := errors.AsType[*Error](err); ok && e.Where == "" {
		e.Where = where
	}
	return err
}

func merge(into, from map[string]setting) {
	for name, s := range from {
		into[name] = s
	}
}

func readFlags(flags *pflag.FlagSet) (found map[string]setting, file setting) {
	found = map[string]setting{}
	if flags == nil {
		return found, file
	}
	flags.Visit(func(f *pflag.Flag) {
		if f.Name == KeyConfig {
			file = setting{values: []string{f.Value.String()}, where: "--" + KeyConfig}
			return
		}
		if _, known := keyByName(f.Name); !known {
			return // a flag of the command, not of the configuration
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		found[f.Name] = setting{values: values, where: "--" + f.Name}
	})
	return found, file
}

func readEnviron(environ []string) (found map[string]setting, file setting, err error) {
	found = map[string]setting{}
	byEnv := map[string]Key{}
	names := []string{EnvPrefix + "CONFIG"}
	for _, key := range Keys() {
		byEnv[key.Env()] = key
		names = append(names, key.Env())
	}
	var problems []error
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, EnvPrefix) || strings.HasPrefix(name, envReserved) {
			continue
		}
		if name == EnvPrefix+"CONFIG" {
			file = setting{values: []string{value}, where: name}
			continue
		}
		key, known := byEnv[name]
		if !known {
			problems = append(problems, unknown(name, "is not a setting", names))
			continue
		}
		values := []string{value}
		if key.List {
			values = strings.Split(value, ",")
		}
		found[key.Name] = setting{values: values, where: name}
	}
	return found, file, errors.Join(problems...)
}

func readFile(file setting, read func(string) ([]byte, error)) (map[string]setting, error) {
	path := file.values[0]
	if read == nil {
		read = os.ReadFile
	}
	data, err := read(path)
	if err != nil {
		return nil, &Error{Where: file.where, Problem: fmt.Sprintf("the file cannot be read: %v", err), Want: "give a YAML file of settings"}
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, &Error{Where: path, Problem: strings.TrimPrefix(err.Error(), "yaml: "), Want: "want YAML lines such as \"listen: 0.0.0.0:6443\""}
	}
	found := map[string]setting{}
	if len(document.Content) == 0 {
		return found, nil // an empty file
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, &Error{Where: fmt.Sprintf("%s:%d", path, root.Line), Problem: "the file is not a list of settings", Want: "want YAML lines such as \"listen: 0.0.0.0:6443\""}
	}
	var problems []error
	for i := 0; i+1 < len(root.Content); i += 2 {
		problems = append(problems, readEntry(found, path, root.Content[i], root.Content[i+1]))
	}
	return found, errors.Join(problems...)
}

func readEntry(found map[string]setting, path string, name, value *yaml.Node) error {
	where := fmt.Sprintf("%s:%d", path, name.Line)
	key, known := keyByName(name.Value)
	if !known {
		names := []string{}
		for _, k := range Keys() {
			names = append(names, k.Name)
		}
		return unknown(where, fmt.Sprintf("%q is not a setting", name.Value), names, name.Value)
	}
	if earlier, twice := found[key.Name]; twice {
		return &Error{Where: where, Problem: fmt.Sprintf("%s is set twice, first at %s", key.Name, earlier.where), Want: "keep one of them"}
	}
	switch {
	case value.Kind == yaml.ScalarNode:
		values := []string{value.Value}
		found[key.Name] = setting{values: values, where: where}
	case value.Kind == yaml.SequenceNode && key.List:
		values := []string{}
		for _, item := range value.Content {
			if item.Kind != yaml.ScalarNode {
				return &Error{Where: fmt.Sprintf("%s:%d", path, item.Line), Problem: key.Name + " holds something that is not a plain value", Want: "want a list of texts"}
			}
			values = append(values, item.Value)
		}
		found[key.Name] = setting{values: values, where: where}
	case key.List:
		return &Error{Where: where, Problem: key.Name + " is not a list", Want: "want one value or a list of values"}
	default:
		return &Error{Where: where, Problem: key.Name + " has a list or map as its value", Want: "want one value"}
	}
	return nil
}

// unknown makes the error for a name that is no key. word is what was written, where if not given.
func unknown(where, problem string, names []string, word ...string) error {
	written := where
	if len(word) > 0 {
		written = word[0]
	}
	want := "known are " + strings.Join(names, ", ")
	if near := Nearest(written, names); near != "" {
		want = fmt.Sprintf("did you mean %s?", near)
	}
	return &Error{Where: where, Problem: problem, Want: want}
}
