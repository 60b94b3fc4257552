"""A web scraper that follows links, and never bothers a server with more than four requests at a time.

    python examples/scraper.py

It scrapes a small site that it serves itself, on the loopback address. The limit is the worker's
``max_concurrency``: a task is a request, and a worker never holds more tasks than that.
"""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urljoin

import httpx

from sitq import SQLiteBackend, TaskQueue, Worker

LIMIT = 4
PAGES = 30


@dataclass(frozen=True)
class Page:
    """What is kept of a page."""

    url: str
    title: str
    links: list[str]


async def fetch(url: str) -> Page:
    """The task: fetches a page and finds its title and links."""
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(url)
    response.raise_for_status()
    title = re.search("<title>(.*?)</title>", response.text)
    links = [urljoin(url, link) for link in re.findall('href="(.*?)"', response.text)]
    return Page(url, title[1] if title else "", links)


async def scrape(queue: TaskQueue, start: str) -> list[Page]:
    """Follows every link from ``start``, one generation of links after the other, each page once."""
    pages: list[Page] = []
    seen = {start}
    found = [start]
    while found:
        ids = await queue.enqueue_many(partial(fetch, url) for url in found)
        results = [await queue.get_result(task_id) for task_id in ids]
        new = [result.unwrap() for result in results if result is not None]
        pages += new
        found = sorted({link for page in new for link in page.links} - seen)
        seen.update(found)
    return pages


@dataclass
class Site:
    """A site whose page ``n`` links to some of the others, and which counts the requests that it is given."""

    url: str = ""
    requests: int = 0
    under_way: int = 0
    most: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request, in no hurry."""
        self.requests += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        head = await reader.readuntil(b"\r\n\r\n")
        page = int(head.split()[1].strip(b"/"))
        await asyncio.sleep(0.01)
        links = "".join(f'<a href="/{to}">{to}</a>' for to in (2 * page + 1, 2 * page + 2, page // 2) if to < PAGES)
        body = f"<title>Page {page}</title>{links}".encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        self.under_way -= 1
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def serve() -> AsyncIterator[Site]:
    """Serves the site on a free port."""
    site = Site()
    server = await asyncio.start_server(site.answer, "127.0.0.1", 0)
    async with server:
        site.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        yield site


async def main(queue_file: Path) -> None:
    """Scrapes the site and prints what was found."""
    backend = SQLiteBackend(queue_file)
    async with serve() as site, TaskQueue(backend) as queue, Worker(backend, max_concurrency=LIMIT):
        pages = await scrape(queue, site.url)
    print(f"{len(pages)} pages, the last one is called {pages[-1].title!r}")
    print(f"{site.requests} requests, never more than {site.most} at a time")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder) / "scraper.db"))
