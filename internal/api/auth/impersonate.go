package auth

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// ImpersonationDenied says which right to impersonate a user lacks.
type ImpersonationDenied struct {
	Attributes authorizer.Attributes
	Reason     string
}

func (e *ImpersonationDenied) Error() string { return "impersonation denied: " + e.Reason }

// Impersonate returns the user that the Impersonate headers ask for, or info itself if there are none. Each header
// needs the right to impersonate what it names; without it the error is an *ImpersonationDenied. Headers that make
// no sense are a 400. The headers are taken out of header, so that a proxied request does not carry them on.
func (a *Authorizer) Impersonate(ctx context.Context, info user.Info, header http.Header) (user.Info, error) {
	if !impersonates(header) {
		return info, nil
	}
	wanted, checks, err := readImpersonation(info, header)
	if err != nil {
		return nil, err
	}
	for i := range checks {
		decision, reason, err := a.Authorize(ctx, &checks[i])
		if err != nil || decision != authorizer.DecisionAllow {
			return nil, &ImpersonationDenied{Attributes: &checks[i], Reason: reason}
		}
	}
	wanted.Groups = implicitGroups(wanted.Name, wanted.Groups)
	for name := range header {
		if isImpersonation(name) {
			delete(header, name)
		}
	}
	return wanted, nil
}

// impersonates reports whether any impersonation header is there, without allocating.
func impersonates(header http.Header) bool {
	for name := range header {
		if isImpersonation(name) {
			return true
		}
	}
	return false
}

func isImpersonation(name string) bool {
	return strings.HasPrefix(name, "Impersonate-") && (name == authenticationv1.ImpersonateUserHeader ||
		name == authenticationv1.ImpersonateGroupHeader || name == authenticationv1.ImpersonateUIDHeader ||
		strings.HasPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix))
}

// readImpersonation reads the headers into a user and the rights that becoming it takes.
func readImpersonation(info user.Info, header http.Header) (*user.DefaultInfo, []authorizer.AttributesRecord, error) {
	wanted := &user.DefaultInfo{Name: header.Get(authenticationv1.ImpersonateUserHeader), Extra: map[string][]string{}}
	if wanted.Name == "" {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("requested %v without impersonating a user", references(header)))
	}
	var checks []authorizer.AttributesRecord
	need := func(group, version, resource, subresource, namespace, name string) {
		checks = append(checks, authorizer.AttributesRecord{User: info, Verb: "impersonate", APIGroup: group, APIVersion: version,
			Resource: resource, Subresource: subresource, Namespace: namespace, Name: name, ResourceRequest: true})
	}
	groups := header[authenticationv1.ImpersonateGroupHeader]
	if namespace, name, err := serviceaccount.SplitUsername(wanted.Name); err == nil {
		need("", "", "serviceaccounts", "", namespace, name)
		if len(groups) == 0 { // an account's groups are fixed
			wanted.Groups = serviceaccount.MakeGroupNames(namespace)
		}
	} else {
		need("", "", "users", "", "", wanted.Name)
	}
	for _, group := range groups {
		need("", "", "groups", "", "", group)
		wanted.Groups = append(wanted.Groups, group)
	}
	authn := authenticationv1.SchemeGroupVersion
	for name, values := range header {
		suffix, found := strings.CutPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !found {
			continue
		}
		key := extraKey(suffix)
		for _, value := range values {
			need(authn.Group, authn.Version, "userextras", key, "", value)
			wanted.Extra[key] = append(wanted.Extra[key], value)
		}
	}
	if uid := header.Get(authenticationv1.ImpersonateUIDHeader); uid != "" {
		need(authn.Group, authn.Version, "uids", "", "", uid)
		wanted.UID = uid
	}
	return wanted, checks, nil
}

// extraKey decodes the name of an extra: lower case, percent-encoded; one that is badly encoded is taken as it is.
func extraKey(suffix string) string {
	suffix = strings.ToLower(suffix)
	if key, err := url.PathUnescape(suffix); err == nil {
		return key
	}
	return suffix
}

// references lists what was asked for, for the message that a user is missing.
func references(header http.Header) []corev1.ObjectReference {
	var out []corev1.ObjectReference
	for _, group := range header[authenticationv1.ImpersonateGroupHeader] {
		out = append(out, corev1.ObjectReference{Kind: "Group", Name: group})
	}
	version := authenticationv1.SchemeGroupVersion.String()
	for name, values := range header {
		if suffix, found := strings.CutPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix); found {
			for _, value := range values {
				out = append(out, corev1.ObjectReference{Kind: "UserExtra", APIVersion: version, Name: value, FieldPath: extraKey(suffix)})
			}
		}
	}
	if uid := header.Get(authenticationv1.ImpersonateUIDHeader); uid != "" {
		out = append(out, corev1.ObjectReference{Kind: "UID", Name: uid, APIVersion: version})
	}
	return out
}

// implicitGroups adds system:authenticated or system:unauthenticated, whichever the name implies, unless the groups
// speak of it already.
func implicitGroups(name string, groups []string) []string {
	if name == user.Anonymous {
		if slices.Contains(groups, user.AllUnauthenticated) {
			return groups
		}
		return append(groups, user.AllUnauthenticated)
	}
	if slices.Contains(groups, user.AllAuthenticated) || slices.Contains(groups, user.AllUnauthenticated) {
		return groups
	}
	return append(groups, user.AllAuthenticated)
}
