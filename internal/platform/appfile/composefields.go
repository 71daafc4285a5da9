package appfile

import (
	"cmp"
	"io/fs"
	"iter"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
)

func (c *composer) build(s *service, node *yaml.Node) {
	s.build = &v1alpha1.BuildSource{Path: path.Clean(cmp.Or(node.Value, "."))}
	for key, content := range pairs(node) {
		switch key.Value {
		case "context":
			s.build.Path = path.Clean(content.Value)
		case "dockerfile":
			s.build.Dockerfile = content.Value
		case "args":
			s.build.Args = map[string]string{}
			for name, value := range settings(content) {
				s.build.Args[name.Value] = value
			}
		case "tags", "cache_from", "cache_to", "pull", "no_cache":
		default:
			c.note(key, "build.%s of %s is left out", key.Value, s.name)
		}
	}
	if strings.HasPrefix(s.build.Path, "..") || path.IsAbs(s.build.Path) || strings.Contains(s.build.Path, "://") {
		c.problem(node, "the build of %s leads out of this folder: %s", s.name, s.build.Path)
	}
}

func (c *composer) envFiles(s *service, node *yaml.Node) {
	files := []*yaml.Node{node}
	if node.Kind == yaml.SequenceNode {
		files = node.Content
	}
	for _, file := range files {
		name, required := file.Value, true
		if file.Kind == yaml.MappingNode {
			name, required = scalarOf(child(file, "path")), scalarOf(child(file, "required")) != "false"
		}
		text, err := fs.ReadFile(c.opts.Folder, path.Clean(name))
		if err != nil {
			if required {
				c.problem(file, "env_file of %s: %s cannot be read", s.name, name)
			}
			continue
		}
		values, err := dotenv.UnmarshalBytesWithLookup(text, c.lookup)
		if err != nil {
			c.problem(file, "env_file of %s: %s: %v", s.name, name, err)
			continue
		}
		for key, value := range values {
			s.env[key], s.lines[key] = value, int32(file.Line)
		}
		c.note(file, "what is in %s becomes part of the application's env, where anyone may read it who may see the application: keep secrets with gantry secret set", name)
	}
}

func (c *composer) environment(s *service, node *yaml.Node) {
	for name, value := range settings(node) {
		if name.Kind == 0 { // only named: the caller's own value
			own, known := c.env[name.Value]
			if !known {
				c.note(node, "%s of %s is left out: it has no value here", name.Value, s.name)
				continue
			}
			value = own
		}
		s.env[name.Value], s.lines[name.Value] = value, int32(name.Line)
	}
}

// settings are the entries of a map or of a list of NAME=VALUE. The name's Kind is 0 where there is no value.
func settings(node *yaml.Node) iter.Seq2[*yaml.Node, string] {
	return func(yield func(*yaml.Node, string) bool) {
		if node.Kind == yaml.SequenceNode {
			for _, item := range node.Content {
				name, value, found := strings.Cut(item.Value, "=")
				key := &yaml.Node{Kind: yaml.ScalarNode, Value: name, Line: item.Line, Column: item.Column}
				if !found {
					key.Kind = 0
				}
				if !yield(key, value) {
					return
				}
			}
			return
		}
		for name, content := range pairs(node) {
			key := *name
			if content.ShortTag() == "!!null" {
				key.Kind = 0
			}
			if !yield(&key, content.Value) {
				return
			}
		}
	}
}

func (c *composer) ports(s *service, key, node *yaml.Node) {
	for i, item := range node.Content {
		target := scalarOf(child(item, "target"))
		if item.Kind == yaml.ScalarNode {
			target, _, _ = strings.Cut(item.Value[strings.LastIndex(item.Value, ":")+1:], "/")
		}
		port, err := strconv.ParseUint(target, 10, 16)
		if err != nil || port == 0 {
			c.problem(item, "the port %q of %s is not a number from 1 to 65535", target, s.name)
			continue
		}
		if i > 0 || s.process.Port != 0 {
			if int32(port) != s.process.Port {
				c.note(item, "the port %d of %s is left out: requests go to %d", port, s.name, s.process.Port)
			}
			continue
		}
		s.process.Port = int32(port)
		if key.Value == "ports" {
			s.ports = true
		}
	}
}

func (c *composer) volumes(s *service, node *yaml.Node) {
	for _, item := range node.Content {
		source, target := scalarOf(child(item, "source")), scalarOf(child(item, "target"))
		if item.Kind == yaml.ScalarNode {
			parts := strings.Split(item.Value, ":")
			source, target = "", parts[0]
			if len(parts) > 1 {
				source, target = parts[0], parts[1]
			}
		}
		kind := cmp.Or(scalarOf(child(item, "type")), "volume")
		if kind != "volume" || strings.ContainsAny(source, "./~") {
			c.note(item, "the mount %s of %s is left out: folders of this machine are not there on the server; build them into the image, or keep data in a volume", cmp.Or(source, kind), s.name)
			continue
		}
		if s.process.Volumes == nil {
			s.process.Volumes = map[string]v1alpha1.Volume{}
		}
		name := AppName(cmp.Or(strings.ReplaceAll(source, "_", "-"), path.Base(target)))
		s.process.Volumes[path.Clean(target)] = v1alpha1.Volume{Name: name}
	}
}

func (c *composer) health(s *service, node *yaml.Node) {
	test := words(child(node, "test"))
	if strings.HasPrefix(test, "NONE") || scalarOf(child(node, "disable")) == "true" {
		return
	}
	found := regexp.MustCompile(`https?://(?:localhost|127\.0\.0\.1)(?::\d+)?(/[^\s"'|;]*)`).FindStringSubmatch(test)
	if found == nil {
		c.note(node, "the healthcheck of %s is left out: only one that asks http://localhost… is understood; an open port is enough now", s.name)
		return
	}
	s.process.Health = &v1alpha1.Health{Path: found[1]}
	if period := child(node, "start_period"); period != nil {
		s.process.Health.Grace = c.duration(period)
	}
}

func (c *composer) deployment(s *service, node *yaml.Node) {
	for key, content := range pairs(node) {
		switch key.Value {
		case "replicas":
			c.replicas(s, content)
		case "resources":
			for _, kind := range []string{"limits", "reservations"} { // what is reserved goes before
				if memory := child(child(content, kind), "memory"); memory != nil {
					s.process.Memory = c.memory(memory)
				}
				if cpus := child(child(content, kind), "cpus"); cpus != nil {
					s.process.CPU = c.quantity(cpus, cpus.Value)
				}
			}
		case "mode", "restart_policy", "update_config", "rollback_config":
		default:
			c.note(key, "deploy.%s of %s is left out", key.Value, s.name)
		}
	}
}

func (c *composer) replicas(s *service, node *yaml.Node) {
	n, err := strconv.ParseInt(node.Value, 10, 32)
	if err != nil || n < 0 || n > 1000 {
		c.problem(node, "replicas of %s: %q is not a whole number from 0 to 1000", s.name, node.Value)
		return
	}
	count := int32(n)
	s.process.Scale = &v1alpha1.Scale{Min: &count}
}

func (c *composer) duration(node *yaml.Node) *metav1.Duration {
	d, err := ParseDuration(node.Value)
	if err != nil {
		c.problem(node, "%q %v", node.Value, err)
		return nil
	}
	return &metav1.Duration{Duration: d}
}

// memory reads Compose's sizes: 512m and 1g are binary.
func (c *composer) memory(node *yaml.Node) *resource.Quantity {
	lower := strings.TrimSuffix(strings.ToLower(node.Value), "b")
	for unit, binary := range map[string]string{"k": "Ki", "m": "Mi", "g": "Gi"} {
		if number, found := strings.CutSuffix(lower, unit); found {
			return c.quantity(node, number+binary)
		}
	}
	return c.quantity(node, lower)
}

func (c *composer) quantity(node *yaml.Node, text string) *resource.Quantity {
	q, err := resource.ParseQuantity(text)
	if err != nil {
		c.problem(node, "%q is not a quantity", node.Value)
		return nil
	}
	return &q
}

func stop(s *service) *v1alpha1.Stop {
	if s.process.Stop == nil {
		s.process.Stop = &v1alpha1.Stop{}
	}
	return s.process.Stop
}

// pairs are the entries of a map, with those of merged maps (<<) after its own.
func pairs(node *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(*yaml.Node, *yaml.Node) bool) {
		if node == nil || resolve(node).Kind != yaml.MappingNode {
			return
		}
		seen := map[string]bool{}
		queue := []*yaml.Node{resolve(node)}
		for len(queue) > 0 && len(queue) < 100 {
			at := queue[0]
			queue = queue[1:]
			for i := 0; i+1 < len(at.Content); i += 2 {
				key, content := at.Content[i], resolve(at.Content[i+1])
				if key.ShortTag() == "!!merge" {
					if content.Kind == yaml.SequenceNode {
						for _, item := range content.Content {
							queue = append(queue, resolve(item))
						}
					} else {
						queue = append(queue, content)
					}
					continue
				}
				if seen[key.Value] {
					continue
				}
				seen[key.Value] = true
				if !yield(key, content) {
					return
				}
			}
		}
	}
}

func child(node *yaml.Node, name string) *yaml.Node {
	for key, content := range pairs(node) {
		if key.Value == name {
			return content
		}
	}
	return nil
}

func resolve(node *yaml.Node) *yaml.Node {
	for range 10 {
		if node.Kind != yaml.AliasNode {
			break
		}
		node = node.Alias
	}
	return node
}

func scalarOf(node *yaml.Node) string {
	if node == nil || node.Kind != yaml.ScalarNode {
		return ""
	}
	return node.Value
}

// names are the items of a list or the keys of a map.
func names(node *yaml.Node) []string {
	var out []string
	if node.Kind == yaml.SequenceNode {
		for _, item := range node.Content {
			out = append(out, item.Value)
		}
	}
	for key := range pairs(node) {
		out = append(out, key.Value)
	}
	return out
}

// words is a command that is a line or a list of words; words are quoted for a shell where need be.
func words(node *yaml.Node) string {
	if node == nil {
		return ""
	}
	if node.Kind != yaml.SequenceNode {
		return scalarOf(node)
	}
	out := make([]string, len(node.Content))
	for i, item := range node.Content {
		out[i] = Quote(item.Value)
	}
	return strings.Join(out, " ")
}

// Quote writes a word so that a shell reads it as one.
func Quote(word string) string {
	if regexp.MustCompile(`^[A-Za-z0-9_./:=@%+,-]+$`).MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
