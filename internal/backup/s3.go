package backup

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// objectPart is how much of an object is sent at once. S3 wants 5 MiB at least but for the last and takes 10,000 of them: backups
	// of up to 160 GB.
	objectPart = 16 << 20
	// objectTries is how often a request is made until it counts as failed.
	objectTries = 4
	// maxAnswer bounds the answers that are read as a whole.
	maxAnswer = 8 << 20
)

// bucket is a place in a store that speaks S3: signed requests (AWS Signature Version 4), the bucket as the path's first part, so
// that any name of a host will do.
type bucket struct {
	name, prefix string
	base         *url.URL
	credentials  Credentials
	client       *http.Client
	now          func() time.Time
	pause        time.Duration // before the second try
}

func newBucket(name, prefix string, c Credentials) (*bucket, error) {
	switch {
	case name == "":
		return nil, errors.New("s3:// needs the name of a bucket, as in s3://backups/gantry")
	case c.AccessKey == "" || c.SecretKey == "":
		return nil, errors.New("a store of objects needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_REGION and AWS_ENDPOINT_URL say where it is")
	}
	c.Region = cmp.Or(c.Region, "us-east-1")
	base, err := url.Parse(cmp.Or(c.Endpoint, "https://s3."+c.Region+".amazonaws.com"))
	if err != nil || base.Host == "" || (base.Scheme != "https" && base.Scheme != "http") {
		return nil, fmt.Errorf("AWS_ENDPOINT_URL is %q, want https://HOST", c.Endpoint)
	}
	transport, _ := http.DefaultTransport.(*http.Transport)
	transport = transport.Clone()
	transport.ResponseHeaderTimeout = 2 * time.Minute
	return &bucket{name: name, prefix: prefix, base: base, credentials: c, client: &http.Client{Transport: transport}, now: time.Now, pause: time.Second}, nil
}

func (b *bucket) key(name string) string { return path.Join(b.prefix, name) }

// ObjectError is a refusal of the store.
type ObjectError struct {
	Status  int
	Code    string `xml:"Code"`
	Message string `xml:"Message"`
}

func (e *ObjectError) Error() string {
	return fmt.Sprintf("the store of objects says %d %s: %s", e.Status, e.Code, e.Message)
}

// do makes a signed request, again where the store says that it was busy. The caller closes the body.
func (b *bucket) do(ctx context.Context, method, key string, query url.Values, body []byte) (*http.Response, error) {
	pause := b.pause
	for try := 1; ; try++ {
		answer, err := b.once(ctx, method, key, query, body)
		refused, isRefusal := errors.AsType[*ObjectError](err)
		if err == nil || ctx.Err() != nil || try == objectTries || (isRefusal && refused.Status < 500 && refused.Status != http.StatusTooManyRequests) {
			return answer, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		case <-timer.C:
		}
		pause *= 2
	}
}

func (b *bucket) once(ctx context.Context, method, key string, query url.Values, body []byte) (*http.Response, error) {
	target := *b.base
	target.Path = path.Join("/", b.base.Path, b.name, key)
	target.RawPath = escapePath(target.Path)
	target.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	request, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask the store of objects: %w", err)
	}
	b.sign(request, body)
	answer, err := b.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the store of objects: %w", err)
	}
	if answer.StatusCode < 300 {
		return answer, nil
	}
	defer func() { _ = answer.Body.Close() }()
	refused := &ObjectError{Status: answer.StatusCode}
	text, _ := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	_ = xml.Unmarshal(text, refused) // without a reason the status must do
	return nil, refused
}

// escapePath writes a path as signatures want it: everything but letters, digits, "-._~" and slashes is escaped.
func escapePath(text string) string {
	return strings.NewReplacer("%2F", "/", "+", "%20").Replace(url.QueryEscape(text))
}

// sign adds the headers of AWS Signature Version 4 (Amazon's documentation, "Create a signed AWS API request").
func (b *bucket) sign(r *http.Request, body []byte) {
	now := b.now().UTC()
	stamp, day := now.Format("20060102T150405Z"), now.Format("20060102")
	sum := sha256.Sum256(body)
	r.Header.Set("X-Amz-Date", stamp)
	r.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:]))
	const signed = "host;x-amz-content-sha256;x-amz-date"
	canonical := strings.Join([]string{
		r.Method, r.URL.EscapedPath(), r.URL.RawQuery,
		"host:" + r.URL.Host + "\nx-amz-content-sha256:" + hex.EncodeToString(sum[:]) + "\nx-amz-date:" + stamp + "\n",
		signed, hex.EncodeToString(sum[:]),
	}, "\n")
	scope := day + "/" + b.credentials.Region + "/s3/aws4_request"
	digest := sha256.Sum256([]byte(canonical))
	text := "AWS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + hex.EncodeToString(digest[:])
	key := []byte("AWS4" + b.credentials.SecretKey)
	for _, part := range []string{day, b.credentials.Region, "s3", "aws4_request", text} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	r.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s",
		b.credentials.AccessKey, scope, signed, hex.EncodeToString(key)))
}

// document makes a request whose answer is XML.
func (b *bucket) document(ctx context.Context, method, key string, query url.Values, body []byte, into any) error {
	answer, err := b.do(ctx, method, key, query, body)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err == nil && into != nil {
		err = xml.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("read the answer of the store of objects: %w", err)
	}
	return nil
}

// Create implements Place.
func (b *bucket) Create(ctx context.Context, name string) (Upload, error) {
	var begun struct {
		UploadID string `xml:"UploadId"`
	}
	if err := b.document(ctx, http.MethodPost, b.key(name), url.Values{"uploads": {""}}, nil, &begun); err != nil {
		return nil, err
	}
	if begun.UploadID == "" {
		return nil, errors.New("the store of objects gave no name to the upload")
	}
	return &objectUpload{ctx: ctx, to: b, key: b.key(name), id: begun.UploadID}, nil
}

// List implements Place.
func (b *bucket) List(ctx context.Context) ([]Item, error) {
	var items []Item
	query := url.Values{"list-type": {"2"}}
	if b.prefix != "" {
		query.Set("prefix", b.prefix+"/")
	}
	for {
		var page struct {
			Contents []struct {
				Key  string
				Size int64
			}
			IsTruncated           bool
			NextContinuationToken string
		}
		if err := b.document(ctx, http.MethodGet, "", query, nil, &page); err != nil {
			return nil, err
		}
		for _, object := range page.Contents {
			if taken, ok := takenOf(path.Base(object.Key)); ok && object.Key == b.key(path.Base(object.Key)) {
				items = append(items, Item{Name: path.Base(object.Key), Bytes: object.Size, Taken: taken})
			}
		}
		if !page.IsTruncated || page.NextContinuationToken == "" {
			newestFirst(items)
			return items, nil
		}
		query.Set("continuation-token", page.NextContinuationToken)
	}
}

// Open implements Place.
func (b *bucket) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	answer, err := b.do(ctx, http.MethodGet, b.key(name), nil, nil)
	if refused, ok := errors.AsType[*ObjectError](err); ok && refused.Status == http.StatusNotFound {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return nil, err
	}
	return answer.Body, nil
}

// Remove implements Place.
func (b *bucket) Remove(ctx context.Context, name string) error {
	return b.document(ctx, http.MethodDelete, b.key(name), nil, nil, nil)
}

// objectUpload sends an object in parts, of which it holds one.
type objectUpload struct {
	ctx   context.Context //nolint:containedctx // of the one upload
	to    *bucket
	key   string
	id    string
	held  []byte
	parts []objectPartDone
}

type objectPartDone struct {
	PartNumber int
	ETag       string
}

// Write implements io.Writer.
func (u *objectUpload) Write(p []byte) (int, error) {
	all := len(p)
	for len(p) > 0 {
		n := min(len(p), objectPart-len(u.held))
		u.held, p = append(slices.Grow(u.held, n), p[:n]...), p[n:]
		if len(u.held) == objectPart {
			if err := u.send(); err != nil {
				return 0, err
			}
		}
	}
	return all, nil
}

func (u *objectUpload) send() error {
	number := len(u.parts) + 1
	answer, err := u.to.do(u.ctx, http.MethodPut, u.key, url.Values{"partNumber": {strconv.Itoa(number)}, "uploadId": {u.id}}, u.held)
	if err != nil {
		return err
	}
	_ = answer.Body.Close()
	u.parts = append(u.parts, objectPartDone{number, answer.Header.Get("Etag")})
	u.held = u.held[:0]
	return nil
}

// Commit implements Upload.
func (u *objectUpload) Commit() error {
	if len(u.held) > 0 || len(u.parts) == 0 {
		if err := u.send(); err != nil {
			return err
		}
	}
	body, err := xml.Marshal(struct {
		XMLName xml.Name         `xml:"CompleteMultipartUpload"`
		Part    []objectPartDone `xml:"Part"`
	}{Part: u.parts})
	if err != nil {
		return fmt.Errorf("finish the upload: %w", err)
	}
	// A refusal may come with status 200, as the answer's begin was sent before the store knew.
	var done struct {
		XMLName xml.Name
		Code    string
		Message string
	}
	if err := u.to.document(u.ctx, http.MethodPost, u.key, url.Values{"uploadId": {u.id}}, body, &done); err != nil {
		return err
	}
	if done.XMLName.Local == "Error" {
		return &ObjectError{Status: http.StatusOK, Code: done.Code, Message: done.Message}
	}
	return nil
}

// Abort implements Upload.
func (u *objectUpload) Abort() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), 30*time.Second)
	defer cancel()
	_ = u.to.document(ctx, http.MethodDelete, u.key, url.Values{"uploadId": {u.id}}, nil, nil)
}
