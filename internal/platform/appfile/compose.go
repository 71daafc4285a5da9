package appfile

import (
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/template"
	"go.yaml.in/yaml/v3"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/config"
)

// ComposeApp is one application that a Compose file becomes.
type ComposeApp struct {
	Name     string
	Spec     v1alpha1.AppSpec
	Lines    map[string]int32 // of the keys of env
	Services []string         // that became it
}

// Compose is what a Compose file becomes: services of one image or build are processes of one application, those of postgres and
// redis are its addons.
type Compose struct {
	Apps []ComposeApp
	// Notes say, line by line, what was left out or is different.
	Notes []Problem
}

// ComposeOptions say what to import.
type ComposeOptions struct {
	File   string // as messages name it
	Text   []byte
	Folder fs.FS             // where the file lies, for env_file and .env
	Name   string            // of an only application, if the file has no name
	Env    map[string]string // of the caller, for ${…}
}

// ComposeNames are the files that Compose looks for.
func ComposeNames() []string {
	return []string{"compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"}
}

// composer holds what is known while a file is read.
type composer struct {
	reader
	opts  ComposeOptions
	env   map[string]string
	notes Problems
}

// ImportCompose reads a Compose file. Variables, .env and env_file are as Compose has them; include and extends are refused.
func ImportCompose(opts ComposeOptions) (*Compose, error) {
	c := &composer{reader: reader{file: opts.File}, opts: opts, env: map[string]string{}}
	if text, err := fs.ReadFile(opts.Folder, ".env"); err == nil {
		values, err := dotenv.UnmarshalBytesWithLookup(text, c.lookup)
		if err != nil {
			return nil, fmt.Errorf("read .env: %w", err)
		}
		c.env = values
	}
	maps.Copy(c.env, opts.Env)
	root, err := c.document(opts.Text)
	if err != nil {
		return nil, err
	}
	c.substitute(root, 0)
	services := c.services(root)
	if err := c.problems.sorted(); err != nil {
		return nil, err
	}
	if len(services) == 0 {
		return nil, Problems{{opts.File, root.Line, root.Column, "there are no services"}}
	}
	out := c.assemble(services, cmp.Or(scalarOf(child(root, "name")), opts.Name))
	if err := c.problems.sorted(); err != nil {
		return nil, err
	}
	c.notes.sort()
	out.Notes = slices.Compact(c.notes)
	return out, nil
}

func (c *composer) lookup(name string) (string, bool) {
	v, ok := c.env[name]
	return v, ok
}

func (c *composer) note(at *yaml.Node, format string, args ...any) {
	c.notes = append(c.notes, Problem{File: c.file, Line: at.Line, Column: at.Column, Text: fmt.Sprintf(format, args...)})
}

// substitute puts values in the place of ${…} in all plain values.
func (c *composer) substitute(node *yaml.Node, depth int) {
	c.nodes++
	if c.nodes > maxNodes || depth > 50 {
		c.problem(node, "is too deep or too large")
		return
	}
	if node.Kind == yaml.ScalarNode && strings.Contains(node.Value, "$") {
		replaced, err := template.Substitute(node.Value, c.lookup)
		if err != nil {
			c.problem(node, "%v", err)
			return
		}
		node.Value = replaced
	}
	for _, inner := range node.Content {
		c.substitute(inner, depth+1)
	}
}

// service is one service as it was read.
type service struct {
	name    string
	node    *yaml.Node
	addon   *v1alpha1.Addon
	image   string
	build   *v1alpha1.BuildSource
	env     map[string]string
	lines   map[string]int32
	process v1alpha1.Process
	ports   bool
	depends []string
}

func (c *composer) services(root *yaml.Node) []*service {
	for key, content := range pairs(root) {
		switch key.Value {
		case "services", "name", "version", "volumes", "networks":
		case "include":
			c.problem(key, "include is not supported: write the services into one file (docker compose config does)")
		case "secrets", "configs":
			for name := range pairs(content) {
				c.note(name, "%s %s is left out: set it with gantry secret set, and name it under secrets", strings.TrimSuffix(key.Value, "s"), name.Value)
			}
		default:
			if !strings.HasPrefix(key.Value, "x-") {
				c.note(key, "%s is left out: it has no meaning here", key.Value)
			}
		}
	}
	var out []*service
	for key, node := range pairs(child(root, "services")) {
		if profiles := child(node, "profiles"); profiles != nil {
			c.note(key, "the service %s is left out: it belongs to a profile", key.Value)
			continue
		}
		if s := c.service(key, node); s != nil {
			out = append(out, s)
		}
	}
	return out
}

func (c *composer) service(key, node *yaml.Node) *service {
	if node.Kind != yaml.MappingNode {
		c.problem(node, "the service %s is %s, and should be a map", key.Value, describe(node))
		return nil
	}
	s := &service{name: AppName(key.Value), node: key, env: map[string]string{}, lines: map[string]int32{}}
	if at := child(node, "env_file"); at != nil {
		c.envFiles(s, at)
	}
	for field, content := range pairs(node) {
		c.field(s, field, resolve(content))
	}
	if s.image == "" && s.build == nil {
		c.problem(key, "the service %s has neither image nor build", key.Value)
		return nil
	}
	if s.build != nil {
		s.image = ""
	}
	if entry, command := words(child(node, "entrypoint")), words(child(node, "command")); entry != "" {
		s.process.Command = strings.TrimSpace(entry + " " + command)
	} else {
		s.process.Command = command
	}
	s.addon = addonOf(s.image)
	return s
}

// field reads one key of a service. What is not read is noted.
func (c *composer) field(s *service, key, node *yaml.Node) {
	switch key.Value {
	case "image":
		if err := CheckImage(node.Value); err != nil {
			c.problem(node, "image: %q %v", node.Value, err)
		}
		s.image = node.Value
	case "build":
		c.build(s, node)
	case "environment":
		c.environment(s, node)
	case "ports", "expose":
		c.ports(s, key, node)
	case "volumes":
		c.volumes(s, node)
	case "healthcheck":
		c.health(s, node)
	case "deploy":
		c.deployment(s, node)
	case "scale":
		c.replicas(s, node)
	case "stop_signal":
		stop(s).Signal = strings.TrimPrefix(node.Value, "SIG")
	case "stop_grace_period":
		stop(s).Timeout = c.duration(node)
	case "mem_limit":
		s.process.Memory = c.memory(node)
	case "cpus":
		s.process.CPU = c.quantity(node, node.Value)
	case "depends_on":
		s.depends = names(node)
	case "extends":
		c.problem(key, "extends is not supported: write the service out (docker compose config does)")
	case "command", "entrypoint", "env_file", "restart", "container_name", "hostname", "networks", "init", "pull_policy", "tty", "stdin_open":
		// Read already, or what holds here anyway: every process is restarted, and named by itself.
	default:
		near := config.Nearest(key.Value, serviceKeys())
		switch {
		case strings.HasPrefix(key.Value, "x-"):
		case near != "" && near != key.Value:
			c.problem(key, "unknown key %q of %s: did you mean %q?", key.Value, s.name, near)
		default:
			c.note(key, "%s of %s is left out: it has no meaning here", key.Value, s.name)
		}
	}
}

// serviceKeys are the keys that a service of Compose may have (https://docs.docker.com/reference/compose-file/services/), with a meaning
// here or not.
func serviceKeys() []string {
	return strings.Fields(`annotations attach blkio_config build cap_add cap_drop cgroup cgroup_parent command configs container_name cpu_count cpu_percent
		cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpus cpuset credential_spec depends_on deploy develop device_cgroup_rules devices dns
		dns_opt dns_search domainname driver_opts entrypoint env_file environment expose extends external_links extra_hosts gpus group_add healthcheck
		hostname image init ipc isolation label_file labels links logging mac_address mem_limit mem_reservation mem_swappiness memswap_limit models
		network_mode networks oom_kill_disable oom_score_adj pid pids_limit platform ports post_start pre_stop privileged profiles provider pull_policy
		read_only restart runtime scale secrets security_opt shm_size stdin_open stop_grace_period stop_signal storage_opt sysctls tmpfs tty ulimits user
		userns_mode uts volumes volumes_from working_dir`)
}

// assemble makes applications of services.
func (c *composer) assemble(services []*service, name string) *Compose {
	var groups [][]*service
	addons := map[string]*service{}
	for _, s := range services {
		if s.addon != nil {
			addons[s.name] = s
			continue
		}
		i := slices.IndexFunc(groups, func(g []*service) bool { return fits(g, s) })
		if i < 0 {
			groups = append(groups, []*service{s})
			continue
		}
		groups[i] = append(groups[i], s)
	}
	out := &Compose{}
	taken := map[string]string{}
	for _, group := range groups {
		app := c.application(group, addons, taken)
		app.Name = group[0].name
		if len(groups) == 1 && name != "" {
			app.Name = AppName(name)
		}
		out.Apps = append(out.Apps, app)
	}
	for _, addonName := range slices.Sorted(maps.Keys(addons)) {
		if taken[addonName] == "" && len(out.Apps) > 0 {
			c.attach(&out.Apps[0], addonName, addons[addonName])
		}
	}
	if len(groups) > 1 {
		c.note(groups[1][0].node, "%s is an application of its own: it has another image or environment than %s. Others reach it at http://%s", groups[1][0].name, groups[0][0].name,
			v1alpha1.ObjectName(groups[1][0].name, v1alpha1.WebProcess))
	}
	return out
}

// fits reports whether a service can be a process of the group's application: one image, one environment.
func fits(group []*service, s *service) bool {
	first := group[0]
	if first.image != s.image || (first.build == nil) != (s.build == nil) {
		return false
	}
	if first.build != nil && (first.build.Path != s.build.Path || first.build.Dockerfile != s.build.Dockerfile || !maps.Equal(first.build.Args, s.build.Args)) {
		return false
	}
	for _, other := range group {
		for key, value := range s.env {
			if old, both := other.env[key]; both && old != value {
				return false
			}
		}
		if other.ports && s.ports {
			return false // an application has one process that takes requests
		}
	}
	return true
}

func (c *composer) application(group []*service, addons map[string]*service, taken map[string]string) ComposeApp {
	app := ComposeApp{Lines: map[string]int32{}, Spec: v1alpha1.AppSpec{
		Image: group[0].image, Build: group[0].build, Env: map[string]string{}, Processes: map[string]v1alpha1.Process{},
	}}
	for _, s := range group {
		app.Services = append(app.Services, s.name)
		maps.Copy(app.Spec.Env, s.env)
		maps.Copy(app.Lines, s.lines)
		process := s.name
		if s.ports || len(group) == 1 && !slices.Contains(workerNames(), s.name) {
			process = v1alpha1.WebProcess
		}
		app.Spec.Processes[process] = s.process
	}
	for _, s := range group {
		for _, on := range s.depends {
			if addon := addons[on]; addon != nil && taken[on] == "" {
				taken[on] = s.name
				c.attach(&app, on, addon)
			} else if addon != nil && taken[on] != "" && !slices.Contains(app.Services, taken[on]) {
				c.note(s.node, "%s cannot share the addon %s with %s: connect it with gantry addon connect", s.name, on, taken[on])
			}
		}
	}
	return app
}

func workerNames() []string { return []string{"worker", "jobs", "cron", "scheduler", "queue"} }

// attach makes a service an addon of an application. What told the application where it is, the addon tells now.
func (c *composer) attach(app *ComposeApp, name string, s *service) {
	if app.Spec.Addons == nil {
		app.Spec.Addons = map[string]v1alpha1.Addon{}
	}
	app.Spec.Addons[name] = *s.addon
	variable := map[string]string{"postgres": "DATABASE_URL", "redis": "REDIS_URL"}[s.addon.Type]
	c.note(s.node, "%s becomes an addon of type %s: %s tells the application where it is; its own settings and data are left out", name, s.addon.Type, variable)
	for _, key := range slices.Sorted(maps.Keys(app.Spec.Env)) {
		if key == variable || strings.Contains(app.Spec.Env[key], "@"+name+":") || strings.Contains(app.Spec.Env[key], "://"+name+":") {
			c.notes = append(c.notes, Problem{File: c.file, Line: int(app.Lines[key]), Text: fmt.Sprintf("%s is left out: it leads to the service %s; %s is set instead", key, name, variable)})
			delete(app.Spec.Env, key)
			delete(app.Lines, key)
		} else if app.Spec.Env[key] == name {
			c.notes = append(c.notes, Problem{File: c.file, Line: int(app.Lines[key]), Text: fmt.Sprintf("%s names the service %s, which is reached by %s now", key, name, variable)})
		}
	}
}

// addonOf tells images of databases by their name.
func addonOf(image string) *v1alpha1.Addon {
	repository, tag, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(image, "docker.io/"), "library/"), ":")
	if repository != "postgres" && repository != "redis" {
		return nil
	}
	major := tag
	if i := strings.IndexFunc(tag, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		major = tag[:i]
	}
	return &v1alpha1.Addon{Type: path.Base(repository), Version: major}
}
