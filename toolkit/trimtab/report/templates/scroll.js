const sized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth;
  }
});
for (const region of document.querySelectorAll(".scroll")) sized.observe(region);
