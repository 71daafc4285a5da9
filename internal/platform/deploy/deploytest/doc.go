// Package deploytest is a cluster for tests of whoever deploys: the real API over HTTPS on loopback, with the platform's part played
// in the test: releases go as the image's name asks for (crash, hang, canary, migratefails), builds end at once, and the registry is
// in memory. Start at Start.
package deploytest
