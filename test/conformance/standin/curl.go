package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// Exit codes of curl.
const (
	curlBadFlag   = 2
	curlNoHost    = 6
	curlNoConnect = 7
	curlBadStatus = 22
	curlTimeout   = 28
)

type curlOptions struct {
	url, method, data, output, format string
	header                            http.Header
	source                            net.IP // address to connect from
	connect, limit                    time.Duration
	insecure, fail, include, follow   bool
}

// curl fetches one address.
func curl(args []string, s streams) error {
	o, err := parseCurl(args)
	if err != nil {
		return &exitError{curlBadFlag, err}
	}
	ctx := context.Background()
	if o.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.limit)
		defer cancel()
	}
	request, err := http.NewRequestWithContext(ctx, o.method, o.url, strings.NewReader(o.data))
	if err != nil {
		return &exitError{curlBadFlag, err}
	}
	request.Header, request.Host = o.header, o.header.Get("Host")
	client := &http.Client{Transport: &http.Transport{
		DialContext:       o.dialer().DialContext,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: o.insecure}, //nolint:gosec // what -k asks for
		DisableKeepAlives: true,
	}}
	if !o.follow {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	answer, err := client.Do(request)
	if err != nil {
		return &exitError{curlCode(err), err}
	}
	defer func() { _ = answer.Body.Close() }()
	return o.write(answer, s.out)
}

func (o curlOptions) dialer() *net.Dialer {
	dialer := &net.Dialer{Timeout: o.connect}
	if o.source != nil {
		dialer.LocalAddr = &net.TCPAddr{IP: o.source}
	}
	return dialer
}

func (o curlOptions) write(answer *http.Response, stdout io.Writer) error {
	if o.fail && answer.StatusCode >= http.StatusBadRequest {
		return &exitError{curlBadStatus, fmt.Errorf("the requested URL returned error: %d", answer.StatusCode)}
	}
	to := stdout
	if o.output != "" {
		file, err := os.OpenFile(o.output, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			return &exitError{23, err}
		}
		defer func() { _ = file.Close() }()
		to = file
	}
	if o.include {
		_, _ = fmt.Fprintf(to, "%s %s\r\n", answer.Proto, answer.Status)
		_ = answer.Header.Write(to)
		_, _ = fmt.Fprint(to, "\r\n")
	}
	if _, err := io.Copy(to, answer.Body); err != nil {
		return &exitError{curlCode(err), err}
	}
	format := strings.NewReplacer(`\n`, "\n", "%{http_code}", strconv.Itoa(answer.StatusCode)).Replace(o.format)
	_, _ = fmt.Fprint(stdout, format)
	return nil
}

// curlCode is the exit code for an error of the connection.
func curlCode(err error) int {
	timeout, isNet := errors.AsType[net.Error](err)
	_, isName := errors.AsType[*net.DNSError](err)
	switch {
	case isNet && timeout.Timeout():
		return curlTimeout
	case isName:
		return curlNoHost
	}
	return curlNoConnect
}

// long are curl's long flags by the letter of the short one; those without a letter are themselves.
func long(flag string) string {
	short := map[string]string{
		"--silent": "-s", "--fail": "-f", "--insecure": "-k", "--include": "-i", "--location": "-L", "--output": "-o", "--write-out": "-w",
		"--max-time": "-m", "--request": "-X", "--header": "-H", "--data": "-d", "--globoff": "-g", "--show-error": "-S", "--verbose": "-v",
	}[flag]
	if short != "" {
		return short
	}
	return flag
}

func parseCurl(args []string) (curlOptions, error) {
	o := curlOptions{method: http.MethodGet, header: http.Header{}}
	for len(args) > 0 {
		flag := long(args[0])
		args = args[1:]
		if !strings.HasPrefix(flag, "-") {
			o.url = flag
			continue
		}
		if len(flag) > 2 && flag[1] != '-' { // -sk is -s -k, and -XPUT is -X PUT
			rest := flag[2:]
			flag = flag[:2]
			if !strings.Contains("owXdHm", flag[1:]) {
				rest = "-" + rest
			}
			args = append([]string{rest}, args...)
		}
		if o.set(flag) {
			continue
		}
		if len(args) == 0 {
			return o, fmt.Errorf("%s is unknown or lacks a value", flag)
		}
		if err := o.setValue(flag, args[0]); err != nil {
			return o, err
		}
		args = args[1:]
	}
	if o.url == "" {
		return o, errors.New("no address")
	}
	if !strings.Contains(o.url, "://") {
		o.url = "http://" + o.url
	}
	return o, nil
}

// set takes a flag without a value; it reports whether it knows the flag.
func (o *curlOptions) set(flag string) bool {
	switch flag {
	case "-s", "-q", "-g", "-S", "-v": // what they say is so anyway
	case "-k":
		o.insecure = true
	case "-f":
		o.fail = true
	case "-i":
		o.include = true
	case "-L":
		o.follow = true
	default:
		return false
	}
	return true
}

func (o *curlOptions) setValue(flag, value string) (err error) {
	switch flag {
	case "-o":
		o.output = value
	case "-w":
		o.format = value
	case "-X":
		o.method = value
	case "-d":
		o.data = value
		if o.method == http.MethodGet {
			o.method = http.MethodPost
		}
	case "-H":
		name, text, _ := strings.Cut(value, ":")
		o.header.Set(name, strings.TrimSpace(text))
	case "--interface":
		if o.source = net.ParseIP(value); o.source == nil {
			return fmt.Errorf("--interface: %q is no address", value)
		}
	case "-m":
		o.limit, err = seconds(value)
	case "--connect-timeout":
		o.connect, err = seconds(value)
	default:
		return fmt.Errorf("unknown flag %s", flag)
	}
	return err
}

func seconds(text string) (time.Duration, error) {
	number, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number of seconds: %w", text, err)
	}
	return time.Duration(number * float64(time.Second)), nil
}
