// Command pack compresses programs for package programs to embed.
//
//	pack DIR NAME=FILE...
//
// It writes DIR/NAME.zst for each and DIR/INDEX last. A program whose contents are those
// listed in the index already is not compressed again; files of programs not named are
// removed.
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: pack DIR NAME=FILE, one or more")
	}
	dir := args[0]
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	old, err := os.ReadFile(filepath.Join(dir, "INDEX"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var listing bytes.Buffer
	keep := map[string]bool{"INDEX": true, ".gitkeep": true}
	for _, arg := range args[1:] {
		name, file, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("argument %q is not NAME=FILE", arg)
		}
		line, err := pack(dir, name, file, string(old))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		listing.WriteString(line)
		keep[name+".zst"] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !keep[entry.Name()] {
			if err := os.Remove(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	if bytes.Equal(old, listing.Bytes()) {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, "INDEX"), listing.Bytes(), 0o644)
}

// pack compresses one program and returns its line of the index.
func pack(dir, name, file, old string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	version := "unknown"
	if info, err := buildinfo.Read(bytes.NewReader(data)); err == nil && info.Main.Version != "" {
		version = info.Main.Version
	}
	sum := sha256.Sum256(data)
	line := fmt.Sprintf("%s %s %d %s\n", name, hex.EncodeToString(sum[:]), len(data), version)
	target := filepath.Join(dir, name+".zst")
	if _, err := os.Stat(target); err == nil && strings.Contains(old, line) {
		return line, nil
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return "", err
	}
	defer encoder.Close()
	return line, os.WriteFile(target, encoder.EncodeAll(data, nil), 0o644)
}
