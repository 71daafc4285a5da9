// Package images is the cluster's own image registry: OCI distribution over a folder, who may use it, what it keeps, and a
// client for it.
//
// Content lies once, by its digest; a repository holds marks for what it may serve. What nodes pull from a registry on
// their own disk is linked, not copied. Everything that was acknowledged is on the disk: there is no index in memory and
// nothing to rebuild after a crash. The package knows no Kubernetes but for Collector, which asks the API what is in use.
//
// In the folder:
//
//	blobs/sha256/ab/HEX                content, never changed once it is there
//	repos/PROJECT/APP/_blobs/DIGEST    the repository may serve this content
//	repos/PROJECT/APP/_manifests/…     and this as a manifest, of this media type
//	repos/PROJECT/APP/_tags/TAG        the manifest that a tag means
//	repos/PROJECT/APP/_referrers/…     manifests by the manifest that they are about
//	uploads/ID, uploads/ID.json        what is being uploaded
//
// Start at Store, then Handler. Client is the other side.
package images
