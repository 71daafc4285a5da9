package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/store"
)

// Get returns the object. revision is the client's resourceVersion: a minimum that has
// nearly always been reached.
func (r *Resource) Get(ctx context.Context, namespace, name, revision string) (*store.Entry, error) {
	if _, err := r.awaitRevision(ctx, revision); err != nil {
		return nil, err
	}
	if r.def.computed != nil {
		return r.getComputed(ctx, namespace, name)
	}
	entry, err := r.store.Get(r.def.stored.Name, r.def.stored.Key(namespace, name))
	if err != nil {
		return nil, statusError(err, r.Resource.GroupResource(), name)
	}
	return r.view(entry)
}

// HasCompany reports whether other servers write to the store too, and may know of objects that this one does not know yet.
func (r *Resource) HasCompany() bool { return r.store.HasCompany() }

// GetSub returns a subresource that can be read: a view of the object, or its scale.
func (r *Resource) GetSub(ctx context.Context, namespace, name, sub, revision string) (*store.Entry, error) {
	entry, err := r.Get(ctx, namespace, name, revision)
	if err != nil {
		return nil, err
	}
	s := r.subs[sub]
	if s == nil {
		return nil, apierrors.NewGenericServerResponse(http.StatusNotFound, "get", r.Resource.GroupResource(), name, "", 0, true)
	}
	if s.fromParent == nil {
		return entry, nil
	}
	obj, err := s.fromParent(entry.Object)
	if err != nil {
		return nil, err
	}
	return store.NewEntry(obj, AnswerCodec{}), nil
}

// awaitRevision parses the client's resourceVersion and makes sure that reads are at least
// as new: as it for a number, as now for "", as anything for "0".
func (r *Resource) awaitRevision(ctx context.Context, revision string) (int64, error) {
	switch revision {
	case "0":
		return 0, nil
	case "":
		return 0, statusError(r.store.Sync(ctx), r.Resource.GroupResource(), "")
	}
	rev, err := strconv.ParseInt(revision, 10, 64)
	if err != nil || rev < 0 {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("Invalid value: %q: resourceVersion must be a number", revision))
	}
	if rev > r.store.Revision() {
		wait, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if err := r.store.Await(wait, rev); err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			return 0, tooLargeRevision()
		}
	}
	return rev, nil
}

// continueToken is where the next page starts. Upstream's form, so that its tools can read it.
type continueToken struct {
	APIVersion      string `json:"v"`
	ResourceVersion int64  `json:"rv"`
	StartKey        string `json:"start"`
}

const (
	continueVersion = "meta.k8s.io/v1"
	latestRevision  = -1     // in a token: go on with whatever is there
	afterKey        = "\x00" // what follows a key in the order of keys
)

// encodeContinue makes the token of the page after a key.
func encodeContinue(revision int64, after string) (string, error) {
	data, err := json.Marshal(continueToken{continueVersion, revision, after + afterKey})
	if err != nil {
		return "", fmt.Errorf("encoding a continue token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(data), nil
}

// List returns the objects of a namespace ("" is all) that match.
func (r *Resource) List(ctx context.Context, namespace string, opts ListOptions) (List, error) {
	sel, err := r.compile(namespace, opts)
	if err != nil {
		return List{}, err
	}
	if r.def.computed != nil {
		return r.listComputed(ctx, namespace, sel)
	}
	sel.filter = r.withLate(sel)
	want := store.ListOptions{Namespace: namespace, Filter: sel.filter, Limit: int(opts.Limit), Index: sel.index, Value: sel.value}
	switch {
	case opts.Continue != "":
		if err := r.resume(&want, opts); err != nil {
			return List{}, err
		}
	default:
		rev, err := r.awaitRevision(ctx, opts.Revision)
		if err != nil {
			return List{}, err
		}
		if exactRevision(opts) {
			want.Rev, want.Index = rev, ""
		}
	}
	if sel.name != "" && want.Rev == 0 && (namespace != "" || !r.Namespaced) {
		return r.listOne(namespace, sel)
	}
	if want.Limit > 0 {
		want.Index = "" // pages walk the table in order
	}
	got, err := r.store.List(ctx, r.def.stored.Name, want)
	if errors.Is(err, store.ErrGone) {
		return List{}, r.expired(want.After)
	}
	if err != nil {
		return List{}, statusError(err, r.Resource.GroupResource(), "")
	}
	list := List{Revision: got.Rev}
	if list.Entries, err = r.viewAll(got.Entries); err != nil {
		return List{}, err
	}
	if got.More {
		if list.Continue, err = encodeContinue(got.Rev, got.LastKey); err != nil {
			return List{}, err
		}
		if sel.filter == nil {
			list.Remaining = &got.Remaining
		}
	}
	return list, nil
}

// resume reads the continue token into want.
func (r *Resource) resume(want *store.ListOptions, opts ListOptions) error {
	if opts.Revision != "" && opts.Revision != "0" {
		return apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	data, err := base64.RawURLEncoding.DecodeString(opts.Continue)
	var token continueToken
	if err == nil {
		err = json.Unmarshal(data, &token)
	}
	after, ended := strings.CutSuffix(token.StartKey, afterKey)
	if err != nil || token.APIVersion != continueVersion || !ended || after == "" || token.ResourceVersion == 0 || token.ResourceVersion < latestRevision {
		return apierrors.NewBadRequest("continue key is not valid: it must be the one that the server returned with the previous page")
	}
	want.Rev, want.After, want.Index = max(token.ResourceVersion, 0), after, ""
	return nil
}

// exactRevision reports whether a list is of one revision: asked for by name, or as clients did before they could name
// it, by a limit together with a revision.
func exactRevision(opts ListOptions) bool {
	if opts.Match == "" {
		return opts.Limit > 0 && opts.Revision != "" && opts.Revision != "0"
	}
	return opts.Match == metav1.ResourceVersionMatchExact
}

// expired is the 410 of a list whose revision is no longer kept. After is where a page should have started: the answer
// holds a token to go on from there with what is there now, for clients that would rather have an inconsistent list
// than start again.
func (r *Resource) expired(after string) error {
	if after == "" {
		return apierrors.NewResourceExpired("The resourceVersion for the provided list is too old.")
	}
	token, err := encodeContinue(latestRevision, after)
	if err != nil {
		return err
	}
	status := apierrors.NewResourceExpired("The provided continue parameter is too old to display a consistent list result. " +
		"You can start a new list without the continue parameter, or use the continue token in this response to retrieve the " +
		"remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, " +
		"modified, or deleted between the time the first chunk was returned and now may show up in the list.")
	status.ErrStatus.Continue = token
	return status
}

// listOne answers a list that names its one object.
func (r *Resource) listOne(namespace string, sel selected) (List, error) {
	list := List{Revision: r.store.Revision()}
	entry, err := r.store.Get(r.def.stored.Name, r.def.stored.Key(namespace, sel.name))
	if err == nil && (sel.filter == nil || sel.filter(entry)) {
		list.Revision = max(list.Revision, entry.Rev)
		list.Entries, err = r.viewAll([]*store.Entry{entry})
		return list, err
	}
	return list, nil
}

// Watch streams changes. Without a revision, or with "0", or when SendInitialEvents asks for
// it, the current objects come first as Added.
func (r *Resource) Watch(ctx context.Context, namespace string, opts ListOptions) (*store.Watch, error) {
	if r.def.computed != nil {
		return nil, apierrors.NewMethodNotSupported(r.Resource.GroupResource(), "watch")
	}
	sel, err := r.compile(namespace, opts)
	if err != nil {
		return nil, err
	}
	want := store.WatchOptions{Namespace: namespace, Filter: sel.filter}
	if sel.filter != nil && sel.late == nil { // what is matched late does not keep the others out
		want.Index, want.Value = sel.index, sel.value
	}
	if !r.isStored() {
		want.Map = func(events []store.Event) error { return r.viewEvents(events, sel.late) }
	}
	rev, err := r.watchRevision(opts.Revision)
	if err != nil {
		return nil, err
	}
	switch {
	case opts.SendInitialEvents != nil && *opts.SendInitialEvents:
		if _, err := r.awaitRevision(ctx, opts.Revision); err != nil {
			return nil, err
		}
		want.Initial = true
	case opts.SendInitialEvents != nil && rev == 0:
		want.Since = r.store.Revision()
	case rev == 0:
		want.Initial = true
	default:
		want.Since = rev
	}
	w, err := r.store.Watch(ctx, r.def.stored.Name, want)
	if errors.Is(err, store.ErrGone) {
		return nil, apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d", rev))
	}
	return w, statusError(err, r.Resource.GroupResource(), "")
}

func (r *Resource) watchRevision(revision string) (int64, error) {
	if revision == "" {
		return 0, nil
	}
	rev, err := strconv.ParseInt(revision, 10, 64)
	if err != nil || rev < 0 {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("Invalid value: %q: resourceVersion must be a number", revision))
	}
	return rev, nil
}

// Count is how many objects there are, in all namespaces: how much a list has to go through.
func (r *Resource) Count() int { return r.store.Count(r.def.stored.Name) }
