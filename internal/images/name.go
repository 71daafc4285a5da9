package images

import (
	_ "crypto/sha256" // digests of both kinds may come
	_ "crypto/sha512"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Host is what references to images of the cluster's registry begin with. No name server knows it: nodes go to the API
// server for it.
const Host = "registry.gantry.internal"

// Group and Resource are the virtual resource that rights are given on: in the namespace that is the project, by the name
// of the application.
const (
	Group    = "registry.gantry.dev"
	Resource = "images"
)

// Limits of names, as the distribution specification and file systems have them.
const (
	maxRepository = 255
	maxTag        = 128
)

// Repository is a name such as "shop/web" or "shop/web/cache": the project, the application and what follows.
type Repository struct {
	Project string // a namespace
	App     string
	Name    string // all of it
}

// ParseRepository reads a repository's name.
func ParseRepository(name string) (Repository, error) {
	if len(name) > maxRepository {
		return Repository{}, fmt.Errorf("repository name has %d characters, at most %d are possible", len(name), maxRepository)
	}
	parts := strings.Split(name, "/")
	if len(parts) < 2 {
		return Repository{}, fmt.Errorf("repository %q is not PROJECT/APP", name)
	}
	for _, part := range parts {
		if !validComponent(part) {
			return Repository{}, fmt.Errorf("repository %q: %q is not lower-case letters, digits and single separators between them", name, part)
		}
	}
	return Repository{Project: parts[0], App: parts[1], Name: name}, nil
}

// validComponent is the specification's [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*.
func validComponent(part string) bool {
	if part == "" || !alphanumeric(part[0]) || !alphanumeric(part[len(part)-1]) {
		return false
	}
	for i := 0; i < len(part); {
		if alphanumeric(part[i]) {
			i++
			continue
		}
		end := i
		for end < len(part) && !alphanumeric(part[end]) {
			end++
		}
		switch separator := part[i:end]; {
		case separator == ".", separator == "_", separator == "__", strings.Trim(separator, "-") == "":
		default:
			return false
		}
		i = end
	}
	return true
}

func alphanumeric(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// validTag is the specification's [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}.
func validTag(tag string) bool {
	if tag == "" || len(tag) > maxTag {
		return false
	}
	for i := range len(tag) {
		c := tag[i]
		switch {
		case alphanumeric(c), c >= 'A' && c <= 'Z', c == '_':
		case i > 0 && (c == '.' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// Reference is a repository and what is meant in it.
type Reference struct {
	Repository Repository
	Tag        string
	Digest     digest.Digest // wins over the tag
}

// String writes the reference without the registry's host.
func (r Reference) String() string {
	out := r.Repository.Name
	if r.Tag != "" {
		out += ":" + r.Tag
	}
	if r.Digest != "" {
		out += "@" + r.Digest.String()
	}
	return out
}

// ParseReference reads "[registry.gantry.internal/]PROJECT/APP[:TAG][@DIGEST]". Without tag and digest both stay empty.
func ParseReference(text string) (Reference, error) {
	name := strings.TrimPrefix(text, Host+"/")
	name, encoded, digested := strings.Cut(name, "@")
	var out Reference
	if digested {
		parsed, err := digest.Parse(encoded)
		if err != nil {
			return Reference{}, fmt.Errorf("image %q: %w", text, err)
		}
		out.Digest = parsed
	}
	if at := strings.LastIndexByte(name, ':'); at > strings.LastIndexByte(name, '/') {
		name, out.Tag = name[:at], name[at+1:]
		if !validTag(out.Tag) {
			return Reference{}, fmt.Errorf("image %q: %q is not a tag", text, out.Tag)
		}
	}
	var err error
	if out.Repository, err = ParseRepository(name); err != nil {
		return Reference{}, fmt.Errorf("image %q: %w", text, err)
	}
	return out, nil
}

// markName is the file name of a digest: a colon is not welcome on every file system.
func markName(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// fromMark is the digest of a file name, or false for one that is none.
func fromMark(name string) (digest.Digest, bool) {
	algorithm, encoded, found := strings.Cut(name, "-")
	d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
	return d, found && d.Validate() == nil
}

// validUpload tells the names of uploads, which come back from clients.
func validUpload(id string) bool {
	if len(id) != 2*uploadBytes {
		return false
	}
	return strings.Trim(id, "0123456789abcdef") == ""
}
