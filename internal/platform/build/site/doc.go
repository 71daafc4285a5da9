// Package site serves a folder of files over HTTP: strong entity tags, ranges, conditional requests,
// files compressed beforehand (name.br, name.gz), no listings, no hidden files.
//
// A file is read and hashed once; folders do not change while an image runs. Start at Handler.
package site
