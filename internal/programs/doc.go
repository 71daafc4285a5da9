// Package programs holds the small programs that run beside gantry (runc, the shims, the
// edge), compressed, inside the binary, and unpacks them where they can be executed.
//
// scripts/build-programs.sh fills bin/GOOS_GOARCH before gantry is built; that folder is
// not in the repository, and without it the package compiles and says what is missing.
// Start at Open.
package programs
