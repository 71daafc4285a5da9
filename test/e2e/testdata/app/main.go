// Command app is what the tests' pods run. Its first argument says what to do:
//
//	serve ADDRESS         answers HTTP with the name of the pod, until it is stopped
//	log LINES BYTES       writes numbered lines of a size, so many a second, until it is stopped
//	pods                  lists the pods of its namespace through kubernetes.default, with its token
//	lookup NAME...        resolves names, each on a line with its addresses
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(ctx, args[1])
	case len(args) == 3 && args[0] == "log":
		return logLines(ctx, args[1], args[2])
	case len(args) == 1 && args[0] == "pods":
		return listPods(ctx)
	case len(args) > 1 && args[0] == "lookup":
		return lookup(ctx, args[1:])
	}
	return fmt.Errorf("no such arguments: %q", args)
}

func serve(ctx context.Context, address string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	srv := &http.Server{Addr: address, ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s\n", name, r.RemoteAddr)
	})}
	go func() {
		<-ctx.Done()
		_ = srv.Shutdown(context.Background())
	}()
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func logLines(ctx context.Context, lines, size string) error {
	perSecond, err := strconv.Atoi(lines)
	if err != nil {
		return err
	}
	bytes, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	const perTick = 10 // ticks a second
	filler := strings.Repeat("x", bytes)
	ticker := time.NewTicker(time.Second / perTick)
	defer ticker.Stop()
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	for number := 0; ; {
		for range max(1, perSecond/perTick) {
			head := fmt.Sprintf("line %d ", number)
			if _, err := out.WriteString(head + filler[:max(0, bytes-len(head)-1)] + "\n"); err != nil {
				return err
			}
			number++
		}
		if err := out.Flush(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func listPods(ctx context.Context) error {
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	config.Host = "https://kubernetes.default" // the name, not the address that the environment has
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	namespace, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	pods, err := client.CoreV1().Pods(string(namespace)).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		fmt.Println(pod.Name, pod.Status.PodIP)
	}
	return nil
}

func lookup(ctx context.Context, names []string) error {
	for _, name := range names {
		addrs, err := net.DefaultResolver.LookupHost(ctx, name)
		if err != nil {
			return err
		}
		slices.Sort(addrs)
		fmt.Println(name, strings.Join(addrs, " "))
	}
	return nil
}
