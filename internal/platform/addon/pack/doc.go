// Package pack holds what Gantry knows of the programs that addons run: images, scripts, probes and the environment that
// applications get. All of it is data, a YAML file a package; nothing here talks to a cluster.
//
// The scripts run in the image of the package, with ADDON_PASSWORD and ADDON_HOST set. They need a POSIX shell and the
// usual small programs beside the package's own. Start at Find.
package pack
