package images

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"gantry.dev/gantry/internal/durable"
)

// uploadBytes is how many random bytes name an upload. Who knows the name and may push to the repository may go on with it.
const uploadBytes = 16

// spaceStep is after how many bytes of an upload the disk's room is looked at again.
const spaceStep = 64 << 20

// upload is what is in memory of an upload that this process has seen. After a restart it is made again from its file.
type upload struct {
	writing sync.Mutex // held while a request works on the upload
	sum     hash.Hash  // SHA-256 of the first size bytes; nil: not known
	size    int64
}

// uploadMeta is stored beside the bytes.
type uploadMeta struct {
	Repository string    `json:"repository"`
	Started    time.Time `json:"started"`
}

func (s *Store) uploadPath(id string) string { return filepath.Join(s.opts.Dir, "uploads", id) }

// BeginUpload starts an upload to a repository and returns its name. size is what is known of its length, or 0.
func (s *Store) BeginUpload(repo Repository, size int64) (string, error) {
	if err := s.room(size); err != nil {
		return "", err
	}
	random := make([]byte, uploadBytes)
	_, _ = rand.Read(random) // never fails
	id := hex.EncodeToString(random)
	path := s.uploadPath(id)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("begin upload: %w", err)
	}
	meta, err := json.Marshal(uploadMeta{Repository: repo.Name, Started: s.opts.Now()})
	if err != nil {
		return "", fmt.Errorf("begin upload: %w", err)
	}
	// Not synced: an upload that a power failure took away is begun again.
	if err := os.WriteFile(path+".json", meta, 0o600); err != nil {
		return "", fmt.Errorf("begin upload: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", fmt.Errorf("begin upload: %w", err)
	}
	if err := file.Close(); err != nil {
		return "", fmt.Errorf("begin upload: %w", err)
	}
	return id, nil
}

// open finds an upload of a repository and reserves it for the caller, who must call release.
func (s *Store) open(repo Repository, id string) (u *upload, release func(), err error) {
	var meta uploadMeta
	if !validUpload(id) {
		return nil, nil, fmt.Errorf("upload %q: %w", id, ErrNotFound)
	}
	s.mu.Lock()
	if u = s.uploads[id]; u == nil {
		u = &upload{}
		s.uploads[id] = u
	}
	s.mu.Unlock()
	if !u.writing.TryLock() {
		return nil, nil, fmt.Errorf("upload %s: %w: another request writes it", id, ErrBusy)
	}
	if err := readJSON(s.uploadPath(id)+".json", &meta); err != nil || meta.Repository != repo.Name {
		s.drop(id, u)
		return nil, nil, fmt.Errorf("upload %s in %s: %w", id, repo.Name, ErrNotFound)
	}
	return u, u.writing.Unlock, nil
}

// drop forgets an upload that the caller has reserved.
func (s *Store) drop(id string, u *upload) {
	s.mu.Lock()
	if s.uploads[id] == u {
		delete(s.uploads, id)
	}
	s.mu.Unlock()
	u.writing.Unlock()
}

// UploadSize returns how many bytes of an upload are there.
func (s *Store) UploadSize(repo Repository, id string) (int64, error) {
	var meta uploadMeta
	if !validUpload(id) || readJSON(s.uploadPath(id)+".json", &meta) != nil || meta.Repository != repo.Name {
		return 0, fmt.Errorf("upload %q in %s: %w", id, repo.Name, ErrNotFound)
	}
	info, err := os.Stat(s.uploadPath(id))
	if err != nil {
		return 0, fmt.Errorf("upload %s in %s: %w", id, repo.Name, ErrNotFound)
	}
	return info.Size(), nil
}

// Append adds body to an upload and returns its new size. offset is where the body begins; -1 is the end. What came before
// body failed stays: the client may go on from there. length is what is known of body's, or 0.
func (s *Store) Append(ctx context.Context, repo Repository, id string, offset, length int64, body io.Reader) (int64, error) {
	u, release, err := s.open(repo, id)
	if err != nil {
		return 0, err
	}
	defer release()
	return s.append(ctx, u, id, offset, length, body)
}

func (s *Store) append(ctx context.Context, u *upload, id string, offset, length int64, body io.Reader) (int64, error) {
	file, err := os.OpenFile(s.uploadPath(id), os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("write upload: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := u.catchUp(ctx, file); err != nil {
		return 0, err
	}
	if offset >= 0 && offset != u.size {
		return u.size, fmt.Errorf("upload %s: %w: it has %d bytes, the chunk begins at %d", id, ErrRange, u.size, offset)
	}
	if err := s.room(length); err != nil {
		return u.size, err
	}
	buffer := make([]byte, 64<<10)
	sinceCheck := int64(0)
	for {
		n, readErr := body.Read(buffer)
		if n > 0 {
			written, err := file.Write(buffer[:n])
			u.sum.Write(buffer[:written])
			u.size += int64(written)
			if err != nil {
				return u.size, fmt.Errorf("write upload: %w", err)
			}
			if sinceCheck += int64(n); sinceCheck >= spaceStep {
				sinceCheck = 0
				if err := s.room(0); err != nil {
					return u.size, err
				}
			}
		}
		if errors.Is(readErr, io.EOF) {
			return u.size, nil
		}
		if readErr != nil {
			return u.size, fmt.Errorf("read upload: %w", readErr)
		}
		if err := ctx.Err(); err != nil {
			return u.size, err
		}
	}
}

// catchUp makes sum and size those of the file, which is left at its end.
func (u *upload) catchUp(ctx context.Context, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("write upload: %w", err)
	}
	if u.sum == nil || info.Size() != u.size {
		u.sum = sha256.New()
		if _, err := io.Copy(u.sum, contextReader{ctx, file}); err != nil {
			u.sum = nil
			return fmt.Errorf("read upload: %w", err)
		}
		u.size = info.Size()
	}
	_, err = file.Seek(u.size, io.SeekStart)
	return err
}

// CommitUpload adds the last bytes of an upload, checks its digest and makes it a blob of its repository. When it returns
// nil the blob is on the disk. With a wrong digest the upload is over.
func (s *Store) CommitUpload(ctx context.Context, repo Repository, id string, d digest.Digest, offset, length int64, body io.Reader) error {
	u, release, err := s.open(repo, id)
	if err != nil {
		return err
	}
	over := false
	defer func() {
		if over {
			s.removeUpload(id)
			s.drop(id, u)
		} else {
			release()
		}
	}()
	if _, err := s.append(ctx, u, id, offset, length, body); err != nil {
		return err
	}
	file, err := os.OpenFile(s.uploadPath(id), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("finish upload: %w", err)
	}
	defer func() { _ = file.Close() }()
	found := digest.NewDigest(digest.SHA256, u.sum)
	if d.Algorithm() != digest.SHA256 {
		verifier := d.Verifier()
		if _, err := io.Copy(verifier, contextReader{ctx, file}); err != nil {
			return fmt.Errorf("finish upload: %w", err)
		}
		if !verifier.Verified() {
			found = d.Algorithm().FromString("")
		} else {
			found = d
		}
	}
	if found != d {
		over = true
		return fmt.Errorf("upload %s: %w: the %d bytes that came are not %s", id, ErrDigest, u.size, d)
	}
	if err := errors.Join(file.Chmod(blobMode), file.Sync()); err != nil {
		return fmt.Errorf("finish upload: %w", err)
	}
	if err := s.settle(repo, d, s.uploadPath(id)); err != nil {
		return err
	}
	over = true
	return nil
}

// settle gives a synced file its name as content and the repository its mark. Content that is there already stays.
func (s *Store) settle(repo Repository, d digest.Digest, path string) error {
	s.marks.RLock()
	defer s.marks.RUnlock()
	target := s.blobPath(d)
	if _, err := os.Stat(target); err != nil {
		if err := durable.MkdirAll(filepath.Dir(target)); err != nil {
			return err
		}
		if err := durable.Rename(path, target); err != nil {
			return fmt.Errorf("finish upload: %w", err)
		}
	}
	s.touch(target)
	return s.putMark(s.mark(repo, blobMarks, markName(d)), nil)
}

// PutBlob stores content that is at hand as a whole.
func (s *Store) PutBlob(ctx context.Context, repo Repository, d digest.Digest, length int64, body io.Reader) error {
	id, err := s.BeginUpload(repo, length)
	if err != nil {
		return err
	}
	err = s.CommitUpload(ctx, repo, id, d, 0, length, body)
	if err != nil {
		_ = s.CancelUpload(repo, id)
	}
	return err
}

// CancelUpload ends an upload and drops its bytes.
func (s *Store) CancelUpload(repo Repository, id string) error {
	u, _, err := s.open(repo, id)
	if err != nil {
		return err
	}
	defer s.drop(id, u)
	s.removeUpload(id)
	return nil
}

// removeUpload removes the bytes first: what is left without its description is nobody's, and the collection removes it.
func (s *Store) removeUpload(id string) {
	for _, path := range []string{s.uploadPath(id), s.uploadPath(id) + ".json"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("removing an upload", "path", path, "error", err)
		}
	}
}
