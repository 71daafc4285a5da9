package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry.dev/gantry/internal/lifecycle"
)

// ErrNotReplicated says that what was pushed is stored, but on too few servers to outlive this one.
var ErrNotReplicated = errors.New("stored here, but not on most of the servers yet; push it again")

// Peer is another server with a registry of the same cluster.
type Peer struct {
	Name string
	URL  string       // such as "https://192.0.2.2:6443"
	HTTP *http.Client // speaks to it as a server
	// Votes is that it counts when a push must be on most of the servers; one that is joining does not.
	Votes bool
}

// ReplicaOptions say what a Replica copies. Store and Peers are needed.
type ReplicaOptions struct {
	Store *Store
	Self  string        // this server's name, as it is among the peers of others
	Peers func() []Peer // the other servers, cheap to ask
	// Every is how often each server is asked whether it has something new; default 15s. What was pushed is told at once.
	Every time.Duration
	// Patience is how long a push waits until it is on most of the servers; default 5 minutes, for large layers.
	Patience time.Duration
	Logger   *slog.Logger
}

// How long other servers are waited for.
const (
	lookPeers   = time.Second     // how often it is looked who they are
	lookAlone   = 5 * time.Second // the same while there are none
	askLimit    = 2 * time.Second // for an answer that needs no work
	offerLimit  = time.Minute     // for a blob to be taken over before its manifest is there
	avoidFor    = 2 * time.Second // one that did not answer is not asked for content
	maxOffers   = 32              // blobs that others are being told of
	stateLimit  = 64 << 20        // bytes of a state
	syncPerPeer = 10 * time.Minute
)

// Replica keeps a Store and those of other servers the same: whoever takes a push tells the others, they fetch it, and the
// push is acknowledged when most servers have it. Who missed that finds out by asking. A nil Replica is that of a registry
// that is alone for ever.
type Replica struct {
	opts  ReplicaOptions
	store *Store
	log   *slog.Logger

	offers  chan struct{}
	group   sync.WaitGroup
	digests keyed // one fetches content, the others wait
	repos   keyed // one takes over a repository's state at a time

	mu     sync.Mutex // guards the fields below
	ended  bool
	avoid  map[string]time.Time
	synced map[string]string // ETag of the state that was taken over last, by peer
}

// NewReplica checks opts and returns a Replica that has started nothing.
func NewReplica(opts ReplicaOptions) (*Replica, error) {
	if opts.Store == nil || opts.Peers == nil {
		return nil, errors.New("images: ReplicaOptions need Store and Peers")
	}
	opts.Every = cmp.Or(opts.Every, 15*time.Second)
	opts.Patience = cmp.Or(opts.Patience, 5*time.Minute)
	if opts.Every < 0 || opts.Patience < 0 {
		return nil, errors.New("images: Every or Patience is negative")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Replica{
		opts: opts, store: opts.Store, log: opts.Logger, offers: make(chan struct{}, maxOffers),
		avoid: map[string]time.Time{}, synced: map[string]string{},
	}, nil
}

// Run takes over what other servers have, from each when it is first seen and then from time to time, until ctx ends.
func (r *Replica) Run(ctx context.Context) error {
	defer r.group.Wait()
	defer func() {
		r.mu.Lock()
		r.ended = true
		r.mu.Unlock()
	}()
	due := map[string]time.Time{}
	for {
		peers := r.opts.Peers()
		for name := range due {
			if !slices.ContainsFunc(peers, func(p Peer) bool { return p.Name == name }) {
				delete(due, name)
				r.forget(name)
			}
		}
		for _, peer := range peers {
			if time.Now().Before(due[peer.Name]) || ctx.Err() != nil {
				continue
			}
			due[peer.Name] = time.Now().Add(r.opts.Every)
			if err := r.Sync(ctx, peer); err != nil && ctx.Err() == nil {
				r.log.Info("taking over images of another server", "server", peer.Name, "error", err)
			}
		}
		wait := lookPeers
		if len(peers) == 0 {
			wait = lookAlone
		}
		if !lifecycle.Pause(ctx, min(wait, r.opts.Every)) {
			return nil
		}
	}
}

func (r *Replica) forget(peer string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.synced, peer)
	delete(r.avoid, peer)
}

// Sync takes over all that a server has and this one lacks.
func (r *Replica) Sync(ctx context.Context, peer Peer) error {
	ctx, cancel := context.WithTimeout(ctx, syncPerPeer)
	defer cancel()
	r.mu.Lock()
	last := r.synced[peer.Name]
	r.mu.Unlock()
	states, tag, err := r.states(ctx, peer, "", last)
	if err != nil || tag == last {
		return err
	}
	var errs []error
	for _, state := range states {
		if err := r.take(ctx, peer, state); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", state.Repository, err))
		}
	}
	if len(errs) == 0 {
		r.mu.Lock()
		r.synced[peer.Name] = tag
		r.mu.Unlock()
	}
	return errors.Join(errs...)
}

// take takes over what is new in a repository of another server.
func (r *Replica) take(ctx context.Context, peer Peer, theirs State) error {
	repo, err := ParseRepository(theirs.Repository)
	if err != nil {
		return err
	}
	unlock, err := r.repos.lock(ctx, repo.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.store.applyRemovals(repo, theirs); err != nil {
		return err
	}
	ours, err := r.store.State(repo)
	if err != nil {
		return err
	}
	news := compare(ours, theirs)
	for _, m := range news.newer {
		if err := r.store.pushedAgain(repo, m); err != nil {
			return err
		}
	}
	fetch := fetching{replica: r, peer: peer, repo: repo, manifests: map[digest.Digest]Manifest{}, done: map[digest.Digest]bool{}}
	for _, m := range news.manifests {
		fetch.manifests[m.Digest] = m
	}
	for _, m := range news.manifests {
		if err := fetch.manifest(ctx, m); err != nil {
			return err
		}
	}
	return r.store.applyTags(repo, news.tags)
}

// fetching is the way of one repository's manifests from another server.
type fetching struct {
	replica   *Replica
	peer      Peer
	repo      Repository
	manifests map[digest.Digest]Manifest // that are to come
	done      map[digest.Digest]bool
}

// manifest fetches a manifest after all that it is made of.
func (f *fetching) manifest(ctx context.Context, m Manifest) error {
	if f.done[m.Digest] {
		return nil
	}
	f.done[m.Digest] = true
	if err := m.Digest.Validate(); err != nil {
		return fmt.Errorf("manifest %q: %w", m.Digest, err)
	}
	body, _, err := f.replica.open(ctx, f.peer, f.repo, m.Digest)
	if errors.Is(err, ErrNotFound) {
		return nil // removed there meanwhile, or its content is lost
	}
	if err != nil {
		return err
	}
	m.Data, err = io.ReadAll(io.LimitReader(body, f.replica.store.opts.MaxManifest+1))
	if err := errors.Join(err, body.Close()); err != nil {
		return fmt.Errorf("fetch manifest %s: %w", m.Digest, err)
	}
	if m.Digest.Algorithm().FromBytes(m.Data) != m.Digest {
		return fmt.Errorf("fetch manifest %s: %w: something else came", m.Digest, ErrDigest)
	}
	doc, err := parseManifest(m.MediaType, m.Data)
	if err != nil {
		return err
	}
	for _, child := range doc.children() {
		part, isManifest := f.manifests[child.Digest]
		if isManifest && slices.ContainsFunc(doc.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == child.Digest }) {
			err = f.manifest(ctx, part)
		} else if !foreign(child) {
			err = f.replica.blob(ctx, f.peer, f.repo, child.Digest)
		}
		if errors.Is(err, ErrNotFound) {
			f.replica.log.Warn("another server has lost a part of an image", "server", f.peer.Name, "repository", f.repo.Name,
				"image", m.Digest.String(), "part", child.Digest.String())
			return nil
		}
		if err != nil {
			return err
		}
	}
	err = f.replica.store.takeManifest(ctx, f.repo, m)
	if errors.Is(err, ErrMissing) {
		return nil // of an index: a part was lost there, which was said
	}
	return err
}

// blob makes content of another server's repository this one's.
func (r *Replica) blob(ctx context.Context, peer Peer, repo Repository, d digest.Digest) error {
	unlock, err := r.digests.lock(ctx, d.String())
	if err != nil {
		return err
	}
	defer unlock()
	if there, err := r.store.takeBlob(repo, d); there || err != nil {
		return err
	}
	body, size, err := r.open(ctx, peer, repo, d)
	if err != nil {
		return err
	}
	err = r.store.PutBlob(ctx, repo, d, max(size, 0), body)
	if err := errors.Join(err, body.Close()); err != nil {
		return fmt.Errorf("fetch %s from %s: %w", d, peer.Name, err)
	}
	return nil
}

// Changed tells the other servers that a repository has changed, and waits until most servers have what this one has.
// Who is not reached finds out by itself.
func (r *Replica) Changed(ctx context.Context, repo Repository) error {
	if r == nil {
		return nil
	}
	peers := r.voters()
	needed := (len(peers) + 1) / 2 // with this one that is a majority
	ended := make(chan error, len(peers))
	for _, peer := range peers {
		r.spawn(ctx, r.opts.Patience, func(ctx context.Context) { ended <- r.tell(ctx, peer, repo, "") }, func() { ended <- context.Canceled })
	}
	var errs []error
	for range peers {
		if needed == 0 {
			return nil
		}
		select {
		case err := <-ended:
			if err == nil {
				needed--
			} else {
				errs = append(errs, err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if needed == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrNotReplicated, errors.Join(errs...))
}

// voters are the other servers that count.
func (r *Replica) voters() []Peer {
	return slices.DeleteFunc(slices.Clone(r.opts.Peers()), func(p Peer) bool { return !p.Votes })
}

// Offer has the other servers fetch content whose manifest is on its way. Nobody waits for it.
func (r *Replica) Offer(ctx context.Context, repo Repository, d digest.Digest) {
	if r == nil {
		return
	}
	for _, peer := range r.opts.Peers() {
		if r.avoided(peer) {
			continue
		}
		select {
		case r.offers <- struct{}{}:
		default:
			return // they get it with the manifest
		}
		done := func() { <-r.offers }
		r.spawn(ctx, offerLimit, func(ctx context.Context) {
			defer done()
			if err := r.tell(ctx, peer, repo, d); err != nil {
				r.log.Debug("offering content", "server", peer.Name, "digest", d.String(), "error", err)
			}
		}, done)
	}
}

// spawn runs f, beyond the end of ctx, for a limited time; Run waits for it. After that, refused is called instead.
func (r *Replica) spawn(ctx context.Context, limit time.Duration, f func(context.Context), refused func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		refused()
		return
	}
	r.group.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		f(ctx)
	})
}

// Fetch brings content that this server lacks, a blob or a manifest, from another one. It reports whether it is here now.
func (r *Replica) Fetch(ctx context.Context, repo Repository, d digest.Digest) bool {
	if r == nil || d.Validate() != nil {
		return false
	}
	for _, peer := range r.opts.Peers() {
		if r.avoided(peer) {
			continue
		}
		err := r.fetch(ctx, peer, repo, d)
		if err == nil && r.store.has(repo, d) {
			return true
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			r.log.Info("fetching content", "server", peer.Name, "repository", repo.Name, "digest", d.String(), "error", err)
		}
	}
	return false
}

func (r *Replica) fetch(ctx context.Context, peer Peer, repo Repository, d digest.Digest) error {
	states, _, err := r.states(ctx, peer, repo.Name, "")
	if err != nil || len(states) == 0 {
		return err
	}
	if slices.ContainsFunc(states[0].Manifests, func(m Manifest) bool { return m.Digest == d }) {
		return r.take(ctx, peer, states[0])
	}
	return r.blob(ctx, peer, repo, d)
}

// Fresh makes the tags of a repository here those of most of the servers. Where these do not answer soon, what is known
// here must do.
func (r *Replica) Fresh(ctx context.Context, repo Repository) {
	if r == nil {
		return
	}
	peers := r.voters()
	if len(peers) == 0 {
		return
	}
	needed := (len(peers) + 1) / 2
	ended := make(chan error, len(peers))
	soon := time.NewTimer(askLimit) // what takes longer goes on without the caller
	defer soon.Stop()
	for _, peer := range peers {
		r.spawn(ctx, r.opts.Patience, func(ctx context.Context) { ended <- r.freshen(ctx, peer, repo) }, func() { ended <- context.Canceled })
	}
	for range peers {
		select {
		case err := <-ended:
			if err == nil {
				needed--
			}
			if needed == 0 {
				return
			}
		case <-soon.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (r *Replica) freshen(ctx context.Context, peer Peer, repo Repository) error {
	states, _, err := r.states(ctx, peer, repo.Name, "")
	if err != nil {
		return err
	}
	for _, state := range states {
		if err := r.take(ctx, peer, state); err != nil {
			return err
		}
	}
	return nil
}

// missed is called with what a server answered that was asked: one that does not answer is left alone for a moment.
func (r *Replica) missed(peer Peer, err error) {
	if failed, ok := errors.AsType[*Error](err); ok && failed.Status != 0 {
		err = nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.avoid, peer.Name)
	} else {
		r.avoid[peer.Name] = time.Now().Add(avoidFor)
	}
}

func (r *Replica) avoided(peer Peer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.avoid[peer.Name])
}

// peer finds a server by its name.
func (r *Replica) peer(name string) (Peer, bool) {
	for _, peer := range r.opts.Peers() {
		if peer.Name == name && strings.TrimSpace(name) != "" {
			return peer, true
		}
	}
	return Peer{}, false
}

// keyed is a lock for each of many names.
type keyed struct {
	mu   sync.Mutex // guards held
	held map[string]chan struct{}
}

// lock waits for a name's lock; the caller must call what it returns.
func (k *keyed) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = map[string]chan struct{}{}
		}
		other, taken := k.held[name]
		if !taken {
			mine := make(chan struct{})
			k.held[name] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, name)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
