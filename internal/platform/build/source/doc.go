// Package source unpacks the archive of a source tree that somebody uploaded.
//
// Nothing in it is believed: names stay below the folder, links stay inside of it, there are
// files, folders and symbolic links only, and sizes and counts are bounded. Start at Unpack.
package source
