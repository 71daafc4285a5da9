package images

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxPage bounds the lists that a client gets at once; it asks for the rest by the Link header.
const maxPage = 1000

// page cuts a sorted list as the query parameters n and last ask for and announces what is left.
func page(w http.ResponseWriter, r *http.Request, path string, list []string) ([]string, *distError) {
	query := r.URL.Query()
	limit := maxPage
	if text := query.Get("n"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return nil, &distError{http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", fmt.Sprintf("n is %q, want a number", text), nil}
		}
		limit = min(n, maxPage)
	}
	if last := query.Get("last"); last != "" {
		at, found := slices.BinarySearch(list, last)
		if found {
			at++
		}
		list = list[at:]
	}
	if len(list) > limit {
		list = list[:limit]
		if limit > 0 {
			next := url.Values{"n": {strconv.Itoa(limit)}, "last": {list[limit-1]}}
			w.Header().Set("Link", fmt.Sprintf("<%s?%s>; rel=\"next\"", path, next.Encode()))
		}
	}
	if list == nil {
		list = []string{}
	}
	return list, nil
}

// catalog lists the repositories that the client may list.
func (h *Handler) catalog(w http.ResponseWriter, r *http.Request) *distError {
	all, err := h.store.Repositories()
	if err != nil {
		return h.failed(r, err)
	}
	var list []string
	allowed := map[Need]bool{}
	for _, repo := range all {
		need := Need{VerbList, repo.Project, repo.App}
		may, asked := allowed[need]
		if !asked {
			may = h.opts.Allowed(r, need)
			allowed[need] = may
		}
		if may {
			list = append(list, repo.Name)
		}
	}
	slices.Sort(list)
	list, failed := page(w, r, "/v2/_catalog", list)
	if failed != nil {
		return failed
	}
	return writeJSON(w, "application/json", map[string][]string{"repositories": list})
}

func nameUnknown(repo Repository) *distError {
	return &distError{http.StatusNotFound, "NAME_UNKNOWN", fmt.Sprintf("there is no repository %s", repo.Name), nil}
}

func (h *Handler) tags(w http.ResponseWriter, r *http.Request, repo Repository) *distError {
	h.opts.Replica.Fresh(r.Context(), repo)
	list, err := h.store.Tags(repo)
	if err != nil {
		return h.failed(r, err)
	}
	if len(list) == 0 && !h.store.Exists(repo) {
		return nameUnknown(repo)
	}
	slices.Sort(list)
	list, failed := page(w, r, "/v2/"+repo.Name+"/tags/list", list)
	if failed != nil {
		return failed
	}
	if r.URL.Query().Get("details") == "" {
		return writeJSON(w, "application/json", map[string]any{"name": repo.Name, "tags": list})
	}
	// An extension for "gantry image ls": what the repository holds, in one request.
	entries, err := h.store.Entries(repo)
	if err != nil {
		return h.failed(r, err)
	}
	return writeJSON(w, "application/json", map[string]any{"name": repo.Name, "tags": list, "images": entries})
}

func (h *Handler) referrers(w http.ResponseWriter, r *http.Request, at route) *distError {
	subject, failed := digestOf(at.name)
	if failed != nil {
		return failed
	}
	kind := r.URL.Query().Get("artifactType")
	index, err := h.store.Referrers(at.repo, subject, kind)
	if err != nil {
		return h.failed(r, err)
	}
	if kind != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeJSON(w, ocispec.MediaTypeImageIndex, index)
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
