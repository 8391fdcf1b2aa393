-- Replays prepared requests: a line each of method, path, If-None-Match and body, with tabs between.
-- Arguments: the file, the bearer token or "-", and "again" (start over at the end) or "once" (each may run only once).
local requests, position, again, threads = {}, 0, false, {}
exhausted = 0

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  again = arguments[3] == "again"
  for line in io.lines(arguments[1]) do
    local method, path, etag, body = line:match("^([^\t]*)\t([^\t]*)\t([^\t]*)\t(.*)$")
    local headers = {}
    if arguments[2] ~= "-" then headers["Authorization"] = "Bearer " .. arguments[2] end
    if etag ~= "" then headers["If-None-Match"] = etag end
    if body ~= "" then headers["Content-Type"] = "application/json" else body = nil end
    requests[#requests + 1] = wrk.format(method, path, headers, body)
  end
end

function request()
  position = position + 1
  if position > #requests then
    if not again then exhausted = 1 end
    position = 1
  end
  return requests[position]
end

function done(summary, latency)
  local errors = summary.errors
  local ran_out = 0
  for _, thread in ipairs(threads) do ran_out = ran_out + thread:get("exhausted") end
  io.write(string.format(
    '\nRESULT {"requests":%d,"microseconds":%d,"bytes":%d,"refused":%d,"broken":%d,"exhausted":%d,' ..
    '"p50":%d,"p99":%d,"worst":%d}\n',
    summary.requests, summary.duration, summary.bytes, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, ran_out,
    latency:percentile(50), latency:percentile(99), latency.max))
end
