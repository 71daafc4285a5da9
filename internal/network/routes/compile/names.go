package compile

import gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

// Names by which objects choose Gantry's gateway.
const (
	Controller        = gatewayv1.GatewayController("gantry.dev/gateway") // of GatewayClasses
	IngressController = "gantry.dev/ingress"                              // of IngressClasses
	Namespace         = "gantry-system"
	ClassName         = "gantry" // of the GatewayClass, the IngressClass and the Gateway that every cluster has
)

// Listener names of Ingress.
const (
	IngressHTTP  = "ingress/http"
	IngressHTTPS = "ingress/https"
)

// Labels, annotations and options.
const (
	// LabelCertificate marks the Secrets in Namespace that hold certificates that Gantry keeps. Its
	// value is "host".
	LabelCertificate = "gateway.gantry.dev/certificate"
	// AnnotationHost on such a Secret is the name or address that its certificate is for.
	AnnotationHost = "gateway.gantry.dev/host"
	// OptionCertificate, a TLS option of a listener and an annotation of an Ingress, asks with the
	// value Auto for certificates that Gantry gets by itself.
	OptionCertificate = "gateway.gantry.dev/certificate"
	// Auto is the value of OptionCertificate.
	Auto = "auto"
	// AnnotationTrustedProxies on the Gateway ClassName lists ranges of addresses that may say for
	// whom they speak.
	AnnotationTrustedProxies = "gateway.gantry.dev/trusted-proxies"
	// AnnotationPublicAddress on the Gateway ClassName lists the addresses that were said with --public-address.
	AnnotationPublicAddress = "gateway.gantry.dev/public-address"
	// AnnotationAccessLog on the Gateway ClassName, or on a route or an Ingress, turns the log of
	// its requests off with the value "off".
	AnnotationAccessLog = "gateway.gantry.dev/access-log"
	// AnnotationMaxBody on a route or an Ingress is how large a request's body may be, as "10Mi".
	AnnotationMaxBody = "gateway.gantry.dev/max-body"
	// AnnotationMaxRequests on a route or an Ingress is how many requests of it may be under way at once.
	AnnotationMaxRequests = "gateway.gantry.dev/max-requests"
	// AnnotationRate on a route or an Ingress is how many requests a client may do, as "20/s", "600/m" or "20/s,burst=50".
	AnnotationRate = "gateway.gantry.dev/rate"
	// AnnotationRetry on a route or an Ingress is which answers are tried again, as "attempts=3,codes=502 503,backoff=100ms":
	// the field "retry" of HTTPRoutes is not in the standard channel.
	AnnotationRetry = "gateway.gantry.dev/retry"
	// AnnotationHold on a Service is for how long requests wait while it has no endpoint.
	AnnotationHold = "gateway.gantry.dev/hold"
	// AnnotationWake is set on a Service while requests wait for it.
	AnnotationWake = "gateway.gantry.dev/wake"
	// AnnotationPorts on a Node says which ports its gateway could not take, and who has them.
	AnnotationPorts = "gateway.gantry.dev/ports"
	// AnnotationRedirect on an Ingress, with the value "https", redirects its plain HTTP.
	AnnotationRedirect = "gateway.gantry.dev/redirect"
)

// ChallengeSecret holds the answers to ACME's challenges: of http-01 token to key authorization, of tls-alpn-01
// TLSChallengePrefix and the name of the handshake to a certificate and its key, in one PEM.
const ChallengeSecret = "acme-challenges"

// TLSChallengePrefix begins the names of tls-alpn-01's answers. Tokens of http-01 have no dot.
const TLSChallengePrefix = "tls-alpn-01."
