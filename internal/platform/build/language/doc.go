// Package language finds out what a source tree is and how an image is made of it: what was
// found, by which file, and for the languages that have no builder of their own a Dockerfile.
//
// It reads the files it is given and does nothing else. Start at Detect.
package language
