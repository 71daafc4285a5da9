package compile

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/network/gateway"
)

// filters compiles those of a rule or a backend. wrong drops the rule; unresolved is a reference
// that leads nowhere.
func (c *compiler) filters(kind, namespace string, in []gatewayv1.HTTPRouteFilter) (out []gateway.Filter, wrong, unresolved *problem) {
	redirects, rewrites := false, false
	for i := range in {
		f := &in[i]
		switch f.Type {
		case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
			out = append(out, gateway.Filter{RequestHeaders: headerChange(f.RequestHeaderModifier)})
		case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
			out = append(out, gateway.Filter{ResponseHeaders: headerChange(f.ResponseHeaderModifier)})
		case gatewayv1.HTTPRouteFilterRequestRedirect:
			redirects = true
			out = append(out, gateway.Filter{Redirect: redirect(f.RequestRedirect)})
		case gatewayv1.HTTPRouteFilterURLRewrite:
			rewrites = true
			out = append(out, gateway.Filter{Rewrite: rewrite(f.URLRewrite)})
		case gatewayv1.HTTPRouteFilterRequestMirror:
			mirror, p := c.mirror(kind, namespace, f.RequestMirror)
			if p != nil {
				unresolved = p
				continue // a copy that goes nowhere harms no request
			}
			if mirror != nil {
				out = append(out, gateway.Filter{Mirror: mirror})
			}
		case gatewayv1.HTTPRouteFilterCORS, gatewayv1.HTTPRouteFilterExternalAuth, gatewayv1.HTTPRouteFilterExtensionRef:
			return nil, problemf(gatewayv1.RouteReasonUnsupportedValue, "filter %s is not served", f.Type), unresolved
		default:
			return nil, problemf(gatewayv1.RouteReasonUnsupportedValue, "filter %s is not known", f.Type), unresolved
		}
	}
	if redirects && rewrites {
		return nil, problemf(gatewayv1.RouteReasonIncompatibleFilters, "a rule either redirects or rewrites"), unresolved
	}
	return out, nil, unresolved
}

func headerChange(f *gatewayv1.HTTPHeaderFilter) *gateway.HeaderChange {
	out := &gateway.HeaderChange{}
	if f == nil {
		return out
	}
	for _, h := range f.Set {
		out.Set = append(out.Set, gateway.Header{Name: string(h.Name), Value: h.Value})
	}
	for _, h := range f.Add {
		out.Add = append(out.Add, gateway.Header{Name: string(h.Name), Value: h.Value})
	}
	out.Remove = f.Remove
	return out
}

func redirect(f *gatewayv1.HTTPRequestRedirectFilter) *gateway.Redirect {
	out := &gateway.Redirect{}
	if f == nil {
		return out
	}
	out.Scheme, out.Host = value(f.Scheme, ""), string(value(f.Hostname, ""))
	out.Port = uint16(value(f.Port, 0)) //nolint:gosec // validated by the API
	out.Status = value(f.StatusCode, 302)
	out.Path, out.Prefix = pathChange(f.Path)
	return out
}

func rewrite(f *gatewayv1.HTTPURLRewriteFilter) *gateway.Rewrite {
	out := &gateway.Rewrite{}
	if f == nil {
		return out
	}
	out.Host = string(value(f.Hostname, ""))
	out.Path, out.Prefix = pathChange(f.Path)
	return out
}

func pathChange(m *gatewayv1.HTTPPathModifier) (path, prefix *string) {
	if m == nil {
		return nil, nil
	}
	if m.Type == gatewayv1.FullPathHTTPPathModifier {
		return m.ReplaceFullPath, nil
	}
	return nil, m.ReplacePrefixMatch
}

func (c *compiler) mirror(kind, namespace string, f *gatewayv1.HTTPRequestMirrorFilter) (*gateway.Mirror, *problem) {
	if f == nil {
		return nil, problemf(gatewayv1.RouteReasonBackendNotFound, "a mirror names no backend")
	}
	id, p := c.backend(kind, namespace, &f.BackendRef)
	if p != nil {
		return nil, p
	}
	out := &gateway.Mirror{Service: id, Percent: int(value(f.Percent, 100))}
	if f.Fraction != nil {
		out.Percent = int(f.Fraction.Numerator * 100 / max(value(f.Fraction.Denominator, 100), 1))
	}
	if out.Percent == 0 {
		return nil, nil
	}
	return out, nil
}
