package api

import (
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// maxParts is how many segments of a resource path have a meaning: resource, name, subresource; more are kept as one.
const maxParts = 3

// requestPath is what a URL path and method ask for, as upstream's RequestInfo has it.
type requestPath struct {
	request.RequestInfo
	rest string // what follows /resource/name/subresource, with its slash; for proxies
	bad  bool   // the path ends after "watch" or "proxy"

	images bool // it is for the image registry
}

// parsePath reads path and method. The query is read later, by refineVerb: most requests have none.
func parsePath(method, urlPath string) requestPath {
	out := requestPath{RequestInfo: request.RequestInfo{Path: urlPath, Verb: lowerMethod(method)}}
	prefix, left, _ := strings.Cut(strings.Trim(urlPath, "/"), "/")
	switch prefix {
	case "api":
		if !strings.Contains(left, "/") {
			return out
		}
	case "apis":
		group, below, _ := strings.Cut(left, "/")
		if !strings.Contains(left, "/") {
			return out
		}
		if !strings.Contains(below, "/") {
			if below != "" || group != "" {
				out.APIPrefix = prefix
			}
			return out
		}
		out.APIGroup, left = group, below
	default:
		return out
	}
	out.APIPrefix, out.IsResourceRequest = prefix, true
	out.APIVersion, left, _ = strings.Cut(left, "/")
	parseResource(&out, method, left)
	return out
}

// parseResource reads what follows the version.
func parseResource(out *requestPath, method, left string) {
	first, below, more := strings.Cut(left, "/")
	if first == "watch" || first == "proxy" {
		if !more {
			out.bad = true
			return
		}
		out.Verb, left = first, below
		first, below, more = strings.Cut(left, "/")
	} else {
		out.Verb = verbOf(method)
	}
	if first == "namespaces" && more {
		namespace, after, deeper := strings.Cut(below, "/")
		out.Namespace = namespace
		if deeper {
			kind, _, _ := strings.Cut(after, "/")
			if kind != "status" && kind != "finalize" {
				left = after
			}
		}
	}
	var parts [maxParts]string
	count := 0
	for count < maxParts && left != "" || count == 0 {
		part, after, found := strings.Cut(left, "/")
		parts[count], left = part, after
		count++
		if !found {
			left = ""
			break
		}
		if count == maxParts {
			left = "/" + left
			break
		}
		if after == "" { // a trailing empty segment cannot be: the path was trimmed
			break
		}
	}
	out.Resource, out.Name = parts[0], parts[1]
	if out.Verb != "proxy" {
		out.Subresource = parts[2]
	}
	out.rest = left
	if out.Name == "" && out.Verb == "get" {
		out.Verb = "list"
	}
	if out.Name == "" && out.Verb == "delete" {
		out.Verb = "deletecollection"
	}
}

// refineVerb turns a list into the watch, or the list of one name, that the query asks for, as authorization sees it.
func (p *requestPath) refineVerb(opts *listQuery) {
	if p.Verb != "list" {
		return
	}
	if opts.watch {
		p.Verb = "watch"
	}
	if opts.fields != nil {
		if name, ok := opts.fields.RequiresExactMatch("metadata.name"); ok && len(content.IsPathSegmentName(name)) == 0 {
			p.Name = name
		}
	}
}

// longRunning reports whether the request may take as long as it likes.
func (p *requestPath) longRunning() bool {
	if p.images {
		return true // layers take their time; the registry bounds them itself
	}
	switch p.Verb {
	case "watch", "proxy":
		return true
	}
	switch p.Subresource {
	case "attach", "exec", "log", "portforward", "proxy":
		return p.IsResourceRequest
	}
	return false
}

func verbOf(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodGet, http.MethodHead:
		return "get"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return ""
}

func lowerMethod(method string) string {
	switch method {
	case http.MethodGet:
		return "get"
	case http.MethodPost:
		return "post"
	case http.MethodPut:
		return "put"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return strings.ToLower(method)
}
