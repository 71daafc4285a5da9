// Package appfile reads what people write about an application: gantry.yaml or a Compose file. The result is always the long form, an api/v1alpha1.AppSpec.
//
// One table of keys (keys.go) drives the parser, the JSON schema and the reference page, so that they cannot disagree. Nothing here
// asks a cluster. Start at Parse. What a folder without a file is, internal/platform/build/language
// tells.
package appfile
