package source

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// Repository is a git repository at an address of http or https, and what of it is wanted.
type Repository struct {
	URL string
	Ref string // a branch, tag or commit; "" is the default branch
	// User and Password are for the repository's own server only: a redirect to another one does not get them.
	User, Password string
}

// Fetched says what of a repository was taken.
type Fetched struct {
	Commit string    // its hash
	Time   time.Time // when it was made
	Notes  []string  // what was left out
}

// RefusedError says that a repository cannot be had as it was asked for. Its text is for the one who asked.
type RefusedError struct{ text string }

func (e *RefusedError) Error() string { return e.text }

func refused(format string, args ...any) error {
	return &RefusedError{fmt.Sprintf(format, args...)}
}

// Fetch takes the files of one commit of a repository into dir, which must be there and empty. Scratch is another such folder, for
// what git sends; the caller removes both. Files get the time at, or that of the commit where at is zero.
func Fetch(ctx context.Context, from Repository, scratch, dir string, at time.Time, limits Limits) (Fetched, error) {
	f := &fetcher{from: from, limits: limits.orDefault()}
	endpoint, err := f.endpoint()
	if err != nil {
		return Fetched{}, err
	}
	var auth transport.AuthMethod
	if from.Password != "" {
		auth = &githttp.BasicAuth{Username: from.User, Password: from.Password}
	}
	client := &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: answerTimeout, ForceAttemptHTTP2: true,
	}}
	defer client.CloseIdleConnections()
	session, err := githttp.NewClient(client).NewUploadPackSession(endpoint, auth)
	if err != nil {
		return Fetched{}, fmt.Errorf("asking for %s: %w", from.URL, err)
	}
	if f.offered, err = session.AdvertisedReferencesContext(ctx); err != nil {
		return Fetched{}, f.explain(ctx, err)
	}
	f.session = session
	f.storage = filesystem.NewStorage(osfs.New(scratch), cache.NewObjectLRU(16*cache.MiByte))
	defer func() { _ = f.storage.Close() }()
	commit, err := f.commit(ctx)
	if err != nil {
		return Fetched{}, err
	}
	if at.IsZero() {
		at = commit.Committer.When.UTC().Truncate(time.Second)
	}
	notes, err := checkout(ctx, commit, dir, at, f.limits)
	return Fetched{Commit: commit.Hash.String(), Time: commit.Committer.When.UTC(), Notes: notes}, err
}

// How long a server may take to be reached, and to begin its answer: it packs what it sends before.
const (
	dialTimeout   = 15 * time.Second
	answerTimeout = 2 * time.Minute
)

type fetcher struct {
	from    Repository
	limits  Limits
	session transport.UploadPackSession
	offered *packp.AdvRefs
	storage *filesystem.Storage
}

// endpoint checks the address.
func (f *fetcher) endpoint() (*transport.Endpoint, error) {
	if host, rest, scp := strings.Cut(f.from.URL, ":"); scp && !strings.HasPrefix(rest, "//") {
		if _, bare, user := strings.Cut(host, "@"); user {
			host = bare
		}
		return nil, refused("build.git: %s is fetched over SSH, which builds do not do: say https://%s/%s", f.from.URL, host, rest)
	}
	address, err := url.Parse(f.from.URL)
	switch {
	case err != nil || address.Host == "":
		return nil, refused("build.git: the url is no address such as https://example.com/acme/shop.git")
	case address.Scheme != "https" && address.Scheme != "http":
		return nil, refused("build.git: builds fetch over https or http, not %s", address.Scheme)
	case address.User != nil:
		return nil, refused("build.git: the url holds a user or a password, which everybody would see: put it into a secret, and name that in build.git.secret")
	case address.RawQuery != "" || address.Fragment != "":
		return nil, refused("build.git: the url has more than a host and a path")
	}
	endpoint, err := transport.NewEndpoint(strings.TrimSuffix(f.from.URL, "/"))
	if err != nil {
		return nil, refused("build.git: %s: %v", f.from.URL, err)
	}
	return endpoint, nil
}

// explain says what an error of the first request means.
func (f *fetcher) explain(ctx context.Context, err error) error {
	address := f.from.URL
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, transport.ErrAuthenticationRequired) && f.from.Password == "":
		return refused("%s asks for a password: it is private, or not there; put USER:PASSWORD or a token into a secret, and name that in build.git.secret", address)
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed):
		return refused("%s refuses the credentials of build.git.secret, or refuses everybody", address)
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return refused("there is no repository at %s", address)
	case errors.Is(err, transport.ErrEmptyRemoteRepository):
		return refused("the repository %s is empty: push a commit first", address)
	}
	if failed, ok := errors.AsType[*net.OpError](err); ok {
		return refused("%s cannot be reached from builds: %v", address, failed)
	}
	return refused("%s does not answer as a git server: %v", address, err)
}

// commit fetches what is asked for and returns it.
func (f *fetcher) commit(ctx context.Context) (*object.Commit, error) {
	hash, found := f.resolve()
	shallow := f.offered.Capabilities.Supports(capability.Shallow)
	full := plumbing.IsHash(f.from.Ref)
	if !found && full { // many servers give any commit that somebody names
		hash = plumbing.NewHash(f.from.Ref)
		if f.pack(ctx, []plumbing.Hash{hash}, shallow) == nil {
			if commit, err := f.peel(hash); err == nil {
				return commit, nil
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	if found {
		if err := f.pack(ctx, []plumbing.Hash{hash}, shallow); err != nil {
			return nil, err
		}
		return f.peel(hash)
	}
	if !full && !isAbbreviated(f.from.Ref) {
		return nil, f.noRef()
	}
	// The others give it with a branch or tag that has it in its history.
	if err := f.pack(ctx, f.heads(), false); err != nil {
		return nil, err
	}
	return f.lookUp()
}

// resolve finds the ref among those that the server offers.
func (f *fetcher) resolve() (plumbing.Hash, bool) {
	if f.from.Ref == "" {
		if f.offered.Head != nil {
			return *f.offered.Head, true
		}
		return plumbing.ZeroHash, false
	}
	for _, prefix := range []string{"refs/heads/", "refs/tags/", ""} {
		if prefix == "" && !strings.HasPrefix(f.from.Ref, "refs/") {
			break
		}
		if hash, ok := f.offered.References[prefix+f.from.Ref]; ok {
			return hash, true
		}
	}
	return plumbing.ZeroHash, false
}

// isAbbreviated says whether a text may be the beginning of a commit's hash.
func isAbbreviated(text string) bool {
	return len(text) >= 7 && len(text) <= 40 && strings.Trim(text, "0123456789abcdef") == ""
}

// heads are what all branches and tags point to.
func (f *fetcher) heads() []plumbing.Hash {
	var out []plumbing.Hash
	for name, hash := range f.offered.References {
		if strings.HasPrefix(name, "refs/heads/") || strings.HasPrefix(name, "refs/tags/") {
			out = append(out, hash)
		}
	}
	slices.SortFunc(out, func(a, b plumbing.Hash) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(out)
}

// maxNames is how many branches and tags an error names.
const maxNames = 8

func (f *fetcher) noRef() error {
	var names []string
	for _, prefix := range []string{"refs/heads/", "refs/tags/"} {
		var some []string
		for name := range f.offered.References {
			if short, ok := strings.CutPrefix(name, prefix); ok {
				some = append(some, short)
			}
		}
		slices.Sort(some)
		names = append(names, some...)
	}
	if f.from.Ref == "" {
		return refused("%s names no default branch: say which in build.git.ref; it has %s", f.from.URL, some(names))
	}
	return refused("%s has no branch, tag or commit %s; it has %s", f.from.URL, f.from.Ref, some(names))
}

func some(names []string) string {
	if len(names) > maxNames {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNames], ", "), len(names)-maxNames)
	}
	return strings.Join(names, ", ")
}

// pack fetches objects; with shallow their history is left out.
func (f *fetcher) pack(ctx context.Context, wants []plumbing.Hash, shallow bool) error {
	request := packp.NewUploadPackRequestFromCapabilities(f.offered.Capabilities)
	request.Wants = wants
	if shallow {
		request.Depth = packp.DepthCommits(1)
		if err := request.Capabilities.Set(capability.Shallow); err != nil {
			return fmt.Errorf("asking for a commit without its history: %w", err)
		}
	}
	answer, err := f.session.UploadPack(ctx, request)
	if err != nil {
		return f.failed(ctx, err)
	}
	defer func() { _ = answer.Close() }()
	var packed io.Reader = answer
	switch {
	case request.Capabilities.Supports(capability.Sideband64k):
		packed = sideband.NewDemuxer(sideband.Sideband64k, answer)
	case request.Capabilities.Supports(capability.Sideband):
		packed = sideband.NewDemuxer(sideband.Sideband, answer)
	}
	bounded := &io.LimitedReader{R: packed, N: f.limits.Bytes}
	err = packfile.UpdateObjectStorage(f.storage, bounded)
	if bounded.N <= 0 {
		return fmt.Errorf("%w: git sends more than %d MiB", ErrTooLarge, f.limits.Bytes>>20)
	}
	if err != nil {
		return f.failed(ctx, err)
	}
	return nil
}

func (f *fetcher) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return refused("fetching %s broke off: %v", f.from.URL, err)
}

// peel returns the commit that a hash names, itself or as a tag.
func (f *fetcher) peel(hash plumbing.Hash) (*object.Commit, error) {
	for range 8 {
		tag, err := object.GetTag(f.storage, hash)
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the tag %s: %w", f.from.Ref, err)
		}
		hash = tag.Target
	}
	commit, err := object.GetCommit(f.storage, hash)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return nil, refused("%s of %s is no commit", cmp.Or(f.from.Ref, "HEAD"), f.from.URL)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the commit %s: %w", hash, err)
	}
	return commit, nil
}

// lookUp finds the one commit whose hash begins with what was asked for, among all that were fetched.
func (f *fetcher) lookUp() (*object.Commit, error) {
	if plumbing.IsHash(f.from.Ref) {
		commit, err := object.GetCommit(f.storage, plumbing.NewHash(f.from.Ref))
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			return nil, f.noRef()
		}
		return commit, err
	}
	all, err := f.storage.IterEncodedObjects(plumbing.CommitObject)
	if err != nil {
		return nil, fmt.Errorf("reading commits: %w", err)
	}
	var match plumbing.Hash
	err = all.ForEach(func(encoded plumbing.EncodedObject) error {
		if hash := encoded.Hash(); strings.HasPrefix(hash.String(), f.from.Ref) && hash != match {
			if !match.IsZero() {
				return refused("more than one commit of %s begins with %s: say all of its hash", f.from.URL, f.from.Ref)
			}
			match = hash
		}
		return nil
	})
	if err != nil && !errors.Is(err, storer.ErrStop) {
		return nil, err
	}
	if match.IsZero() {
		return nil, f.noRef()
	}
	return object.GetCommit(f.storage, match)
}

// checkout writes the files of a commit, by the rules of archives. Files that only hold a developer's secrets are left out, as a
// deploy of a folder does.
func checkout(ctx context.Context, commit *object.Commit, dir string, at time.Time, limits Limits) (notes []string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("checking out: %w", err)
	}
	defer root.Close()
	u := &unpacker{root: root, limits: limits, at: at}
	tree, err := commit.Tree()
	if err != nil {
		return nil, fmt.Errorf("reading the commit %s: %w", commit.Hash, err)
	}
	walker := object.NewTreeWalker(tree, true, nil)
	defer walker.Close()
	for {
		name, entry, err := walker.Next()
		if errors.Is(err, io.EOF) {
			return notes, nil
		}
		if err == nil {
			err = ctx.Err()
		}
		var note string
		if err == nil {
			note, err = u.blob(tree, name, entry)
		}
		if err != nil {
			return nil, fmt.Errorf("checking out %s: %w", commit.Hash, err)
		}
		if note != "" {
			notes = append(notes, note)
		}
	}
}

// blob writes one entry of a commit, or says why it is left out.
func (u *unpacker) blob(tree *object.Tree, name string, entry object.TreeEntry) (note string, err error) {
	base := path.Base(name)
	header := &tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}
	switch {
	case strings.EqualFold(base, ".git") || strings.ContainsAny(base, "\\\x00"):
		return "", fmt.Errorf("%w: the name %q", ErrUnsafe, name)
	case entry.Mode == filemode.Submodule:
		return name + " is a submodule and is left out", nil
	case entry.Mode == filemode.Dir:
		header.Typeflag = tar.TypeDir
		return "", u.entry(header, nil)
	case base == ".env" || (strings.HasPrefix(base, ".env.") && strings.HasSuffix(base, ".local")):
		return name + " is left out: set secrets with gantry secret set", nil
	case entry.Mode == filemode.Executable:
		header.Mode = 0o755
	}
	file, err := tree.TreeEntryFile(&entry)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, err)
	}
	if entry.Mode == filemode.Symlink {
		if file.Size > maxLink {
			return "", fmt.Errorf("%w: the link %s is too long", ErrUnsafe, name)
		}
		header.Typeflag = tar.TypeSymlink
		if header.Linkname, err = file.Contents(); err != nil {
			return "", fmt.Errorf("reading the link %s: %w", name, err)
		}
		return "", u.entry(header, nil)
	}
	header.Size = file.Size
	content, err := file.Reader()
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, err)
	}
	return "", errors.Join(u.entry(header, content), content.Close())
}

// maxLink bounds where a symbolic link may point to.
const maxLink = 4096
