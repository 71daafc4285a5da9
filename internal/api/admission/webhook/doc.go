// Package webhook asks the mutating and validating webhooks that the cluster is configured with.
//
// Matching, calling and patching are upstream's. A configuration is effective for the next
// request after it was written. Nothing is built before there is a configuration. Start at New.
package webhook
