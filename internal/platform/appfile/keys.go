package appfile

// shape is what may stand at a place of the file: exactly one of a scalar, an object with known keys, a map with free keys,
// and a list. An object may have a scalar as its short form.
type shape struct {
	scalar *scalar
	keys   []key
	short  string // the key that a scalar in the object's place is for
	names  *scalar
	values *shape // of a map whose keys are names
	items  *shape // of a list
}

// key is one key of an object.
type key struct {
	name     string
	shape    *shape
	doc      string
	fallback string // what holds where the key is not said
	required bool
}

func object(short string, keys ...key) *shape   { return &shape{keys: keys, short: short} }
func mapOf(names *shape, values *shape) *shape  { return &shape{names: names.scalar, values: values} }
func listOf(items *shape) *shape                { return &shape{items: items} }
func (s *shape) find(name string) (key, bool)   { return findKey(s.keys, name) }
func (k key) must() key                         { k.required = true; return k }
func say(name string, s *shape, doc string) key { return key{name: name, shape: s, doc: doc} }
func (k key) or(fallback string) key            { k.fallback = fallback; return k }
func findKey(keys []key, name string) (key, bool) {
	for _, k := range keys {
		if k.name == name {
			return k, true
		}
	}
	return key{}, false
}

func (s *shape) keyNames() []string {
	names := make([]string, len(s.keys))
	for i, k := range s.keys {
		names[i] = k.name
	}
	return names
}

// file is the table of everything that gantry.yaml may hold.
func file() *shape {
	keys := append([]key{say("name", label("a name such as shop", MaxAppName), "The application's name, a part of its address.").or("the folder's name")}, appKeys()...)
	return object("", append(keys, say("stages", mapOf(label("a name such as staging", MaxProcessName), stage()),
		"Further copies of the application, by name. `deploy --stage staging` deploys APP-staging: what a stage says goes before what the file "+
			"says, map by map; a short form, a list and a scalar replace. Domains are never taken over."))...)
}

// stage is what a stage may change.
func stage() *shape { return object("", appKeys()...) }

func appKeys() []key {
	web := topProcessKeys()
	return append([]key{
		say("image", imageReference(), "The image to run, instead of building one."),
		say("build", build(), "How the image is made from source.").or("found by what is in the folder"),
		say("release", object("command",
			say("command", text(), "The command.").must(),
			say("timeout", duration(), "How long it may take.").or("10m"),
		), "A command that runs once before a release gets requests, such as migrations."),
		say("env", mapOf(variable(), anyText()), "The environment of every process."),
		say("secrets", listOf(variable()), "Names of secrets that become environment variables. A deploy refuses while one is unset (`gantry secret set`)."),
		say("addons", mapOf(label("a name such as db", MaxProcessName), addon()), "Services that belong to the application, by a name of yours."),
		say("domains", listOf(object("name",
			say("name", domain(), "The host name.").must(),
			say("redirect", domain(), "The host name that requests are sent to, instead of being served."),
		)), "Further host names of the process web."),
		say("processes", mapOf(label("a name such as worker", MaxProcessName), process()), "What runs. The process named web gets requests.").or("web alone"),
		say("rollout", rollout(), "How a release replaces the one before.").or("rolling"),
		say("placement", object("",
			say("labels", mapOf(text(), anyText()), "Labels that a node must have."),
			say("spread", oneOf("node", "zone"), "What containers of a process are spread over.").or("node"),
		), "Where containers may run."),
	}, web...)
}

// topProcessKeys are the keys of processes.web that may stand at the top.
func topProcessKeys() []key {
	var out []key
	for _, name := range []string{"command", "port", "health", "scale"} {
		k, _ := process().find(name)
		k.doc = "Short for `processes.web." + name + "`."
		k.fallback = ""
		out = append(out, k)
	}
	return out
}

func build() *shape {
	return object("path",
		say("path", inside(), "The folder with the source.").or("the file's folder"),
		say("git", object("url",
			say("url", text(), "The repository.").must(),
			say("ref", anyText(), "A branch, tag or commit.").or("the default branch"),
			say("secret", variable(), "The name of a secret that holds USER:PASSWORD or a token, for a repository that is not public."),
		), "A repository to build from, instead of a folder; path is then one in it. It is fetched over https or http."),
		say("dockerfile", inside(), "The file to build with, relative to path.").or("Dockerfile"),
		say("registry", text(), "Where the image is pushed to, as REGISTRY/NAME: on a cluster that is not Gantry's, such as ghcr.io/acme.").or("the cluster's own"),
		say("args", mapOf(variable(), anyText()), "Arguments of the build."),
		say("secrets", listOf(variable()), "Names of secrets that the build may read and the image never holds."),
	)
}

func addon() *shape {
	return object("type",
		say("type", oneOf("postgres", "redis"), "What it is. postgres sets DATABASE_URL, redis REDIS_URL; two of a type: KEY_URL.").must(),
		say("version", version(), "Its major version.").or("the newest"),
		say("size", quantity("a size such as 10Gi"), "The size of its volume.").or("1Gi"),
		say("backup", cronExpression("daily", "hourly", "weekly"), "When it is backed up.").or("never"),
	)
}

func process() *shape {
	return object("command",
		say("command", text(), "What is run.").or("the Procfile's, then the image's own"),
		say("port", integer(1, 65535), "Where it listens.").or("$PORT, else the one port it listens on"),
		say("health", object("path",
			say("path", urlPath(), "What is asked with GET. Without it an open port is enough."),
			say("grace", duration(), "How long it may take to start.").or("1m"),
		), "How it says that it can take requests."),
		say("scale", scale(), "How many there are.").or("1"),
		say("cpu", quantity("a number of CPUs such as 0.5"), "CPUs that are reserved for each."),
		say("memory", quantity("a size such as 256Mi"), "Memory that is reserved for each, and the most it may use."),
		say("volumes", mapOf(absolute(), object("name",
			say("name", label("a name such as uploads", MaxProcessName), "The volume's name.").must(),
			say("size", quantity("a size such as 5Gi"), "Its size.").or("1Gi"),
		)), "Storage that is kept, by the path it is mounted at."),
		say("stop", object("timeout",
			say("signal", signal(), "What is sent first.").or("the image's own, TERM"),
			say("timeout", duration(), "How long it may take to end.").or("30s"),
		), "How it is ended."),
		say("schedule", cronExpression(), "When it runs: then it runs and ends, instead of running for ever."),
		say("timezone", timezone(), "Where the schedule's times are.").or("UTC"),
	)
}

func scale() *shape {
	count := integer(1, 1_000_000)
	return object("min",
		say("min", integer(0, 1000), "The least number. 0 lets web sleep while nobody asks.").or("1"),
		say("max", integer(1, 1000), "The most.").or("min, at least 1"),
		say("concurrency", count, "Requests at once that each should have."),
		say("requests", count, "Requests a second that each should have."),
		say("cpu", integer(1, 1000), "Percent of the reserved CPUs that each should use."),
		say("memory", integer(1, 100), "Percent of its memory that each should use."),
		say("idle", duration(), "How long nobody may have asked before it sleeps, and the time of cooling down.").or("10m"),
		say("warmup", duration(), "How long a new one is not judged by its CPU."),
	)
}

func rollout() *shape {
	return object("strategy",
		say("strategy", oneOf("rolling", "canary"), "rolling, or canary: a share of the requests first.").or("rolling"),
		say("steps", listOf(integer(1, 100)), "Percentages of requests that a canary gets, one after the other.").or("5, 25, 50, 100"),
		say("every", duration(), "How long a step lasts; 0 waits for `gantry promote`.").or("5m"),
		say("errors", percent(), "The share of failed requests that aborts."),
		say("p95", duration(), "The time within which 95 of 100 requests must be answered."),
		say("sample", integer(1, 1_000_000_000), "The least number of requests before a step is judged by them.").or("100"),
		say("test", text(), "A command that runs in a container of the release at each step; when it fails, the rollout aborts."),
	)
}
