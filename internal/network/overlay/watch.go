package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// podLinkPrefix begins the names of the pods' links (package podnet), which say nothing about
// the way to other machines.
const podLinkPrefix = "gtp"

// watchPause is the wait after the kernel could not be listened to.
const watchPause = time.Second

// watch calls changed when addresses of this machine, or its links, have changed, and when a
// route of this package was removed: a link that goes down takes its routes with it without a
// word, and network managers may remove what is not theirs. The subscription belongs to the network
// namespace of the calling thread; wait returns when it has ended with ctx.
func watch(ctx context.Context, changed func()) (wait func(), err error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("listening for changes of links: %w", err)
	}
	stop := context.AfterFunc(ctx, socket.Close)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			messages, _, err := socket.Receive()
			switch {
			case errors.Is(err, unix.ENOBUFS): // some were lost
				changed()
			case err != nil && ctx.Err() == nil:
				// Only a closed socket does this; what is missed is found by looking again.
				select {
				case <-ctx.Done():
				case <-time.After(watchPause):
				}
			default:
				if anyMatters(messages) {
					changed()
				}
			}
		}
	}()
	return func() { <-done; stop() }, nil
}

func anyMatters(messages []syscall.NetlinkMessage) bool {
	for i := range messages {
		if matters(messages[i]) {
			return true
		}
	}
	return false
}

// protocolByte is where a message about a route has its protocol (struct rtmsg).
const protocolByte = 5

// matters reports whether a message is about more than a pod's link or somebody's route.
func matters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE:
		return false
	case unix.RTM_DELROUTE:
		return len(m.Data) > protocolByte && m.Data[protocolByte] == routeProtocol
	}
	if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK {
		return true
	}
	if len(m.Data) < unix.SizeofIfInfomsg {
		return false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_IFNAME {
			return !strings.HasPrefix(string(bytes.TrimRight(a.Value, "\x00")), podLinkPrefix)
		}
	}
	return true
}
