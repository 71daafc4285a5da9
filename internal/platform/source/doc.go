// Package source takes what a deploy sends of a folder: its files less those that .gitignore names, .env and .git, as an archive
// that depends on nothing but their content, with the commit they belong to. Git's data is read without the program git.
//
// It never writes into the folder and never sends anything. Start at Scan.
package source
