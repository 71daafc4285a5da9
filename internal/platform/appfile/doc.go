// Package appfile reads what people write about an application: gantry.yaml, a Procfile, a Compose file, or only a folder in which
// something well known lies. The result is always the long form, an api/v1alpha1.AppSpec.
//
// One table of keys (keys.go) drives the parser, the JSON schema and the reference page, so that they cannot disagree. Nothing here
// asks a cluster. Start at Parse and Detect.
package appfile
